"""Writing a file so that a crash leaves the old one or the whole new one."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_HALF = ".part"


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` to write into; at the end it is brought to the disk and renamed over it.

    Folders are made as needed. Where `path` is a link, all of this happens at what it leads to, and
    it stays a link. A file that is replaced hands on its mode and, as far as this process may set
    them, its owner and group.

    Where the block raises, or the disk is full, `path` stays as it was and nothing is left beside
    it. A process that is killed, or a disk that becomes read-only, leaves the file beside, see
    `remove_halves`.

    Raises:
        OSError: it cannot be written, or is there and no regular file; names `path`.
    """
    name = None
    try:
        target = write_target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(_HALF, _beginning(target), target.parent)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _hand_on(target, name)
        os.replace(name, target)
    except BaseException as error:
        if name is not None:
            with suppress(OSError):  # the disk has become read-only: `remove_halves`, later
                Path(name).unlink(missing_ok=True)
        # A full disk names no file, and nobody knows the one beside.
        if isinstance(error, OSError) and error.errno and (error.filename or _HALF).endswith(_HALF):
            error.filename = str(path)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Writes the whole file or none of it, see `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(content)


def write_target(path: Path) -> Path:
    """The file that `atomic_writer` writes for `path`: what a link leads to, there or not.

    Raises:
        OSError: it is there and no regular file, a link leads in a circle, or a name is too long;
            names `path`.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        pass
    else:
        if not stat.S_ISREG(mode):
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(code, f"{os.strerror(code)}: no regular file", str(path))
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def remove_halves(folder: Path, older_than: float = 0) -> None:
    """Deletes what killed processes were writing in a folder, and what they were writing for its
    links beside the files that these lead to, as far as it may be deleted.

    Args:
        older_than: in seconds; above 0 where another process may be writing.
    """
    halves = list(folder.glob(f".*{_HALF}"))
    for link in folder.glob("*"):
        if link.is_symlink():
            target = Path(os.path.realpath(link))
            halves += target.parent.glob(f"{_beginning(target)}*{_HALF}")
    for half in halves:
        with suppress(OSError):  # another process was faster, or the folder is read-only
            if half.stat().st_mtime <= time.time() - older_than:
                half.unlink()


def _beginning(target: Path) -> str:
    """Of the names of a file's halves: short, so that the file's own may be as long as can be."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return f".hypernoise.{digest[:12]}."


def _hand_on(target: Path, name: str) -> None:
    """Gives a new file the mode, owner and group of the one that it will replace; else those of any
    new file, where mkstemp's own mode would keep other users out."""
    try:
        old, new = target.stat(), os.stat(name)
    except FileNotFoundError:
        os.chmod(name, 0o666 & ~_umask())
        return
    for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):
        if owner not in (-1, new.st_uid) or group not in (-1, new.st_gid):
            with suppress(OSError):  # root may give files away, others may not
                os.chown(name, owner, group)
    os.chmod(name, old.st_mode & 0o777)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
