"""Atomic writes: after a crash a file is either the old one or the complete new one."""

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

_SUFFIX = ".part"


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A temporary file next to `path`; on success it is synced to disk and renamed to `path`.

    Missing folders are created. If `path` is a symbolic link, its target is replaced and the link
    stays. A replaced file passes on its mode and, where this process may set them, its owner and
    group.

    If the block raises or the disk is full, `path` is unchanged and the temporary file is removed.
    A killed process or a disk that becomes read-only leaves it behind: see
    `remove_temporary_files`.

    Raises:
        OSError: `path` cannot be written, or exists and is not a regular file; names `path`.
    """
    name = None
    try:
        target = write_target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(_SUFFIX, _prefix(target), target.parent)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _hand_on(target, name)
        os.replace(name, target)
    except BaseException as error:
        if name is not None:
            with suppress(
                OSError
            ):  # the disk has become read-only: `remove_temporary_files`, later
                Path(name).unlink(missing_ok=True)
        # A full disk names no file, and the temporary file's name says nothing to the user.
        if (
            isinstance(error, OSError)
            and error.errno
            and (error.filename or _SUFFIX).endswith(_SUFFIX)
        ):
            error.filename = str(path)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write the whole file or none of it; see `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(content)


def write_target(path: Path) -> Path:
    """The file that `atomic_writer` replaces for `path`: the target of a link, whether it exists.

    Raises:
        OSError: it exists and is not a regular file, links form a loop, or a name is too long;
            names `path`.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        pass
    else:
        if not stat.S_ISREG(mode):
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(code, f"{os.strerror(code)}: not a regular file", str(path))
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def remove_temporary_files(folder: Path, older_than: float = 0) -> None:
    """Delete the temporary files that killed processes left in a folder.

    Includes those beside the targets of the folder's links. Files that cannot be deleted stay.

    Args:
        older_than: only files of at least this age in seconds; above 0 where another process may
            be writing.
    """
    found = list(folder.glob(f".*{_SUFFIX}"))
    for link in folder.glob("*"):
        if link.is_symlink():
            target = Path(os.path.realpath(link))
            found += target.parent.glob(f"{_prefix(target)}*{_SUFFIX}")
    for file in found:
        with suppress(OSError):  # another process was faster, or the folder is read-only
            if file.stat().st_mtime <= time.time() - older_than:
                file.unlink()


def _prefix(target: Path) -> str:
    """Of a file's temporary files: short, so that the file's own name may be of any length."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return f".hypernoise.{digest[:12]}."


def _hand_on(target: Path, name: str) -> None:
    """Give a new file the mode, owner and group of the file it replaces.

    Without one it gets the usual mode of a new file: mkstemp's own keeps other users out.
    """
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
