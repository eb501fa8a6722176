"""Writing a file so that a crash leaves the old one or the whole new one."""

from __future__ import annotations

import os
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

    Folders are made as needed. Where the block raises, or the disk is full, `path` stays as it was
    and nothing is left beside it. A process that is killed, or a disk that becomes read-only,
    leaves the file beside, see `remove_halves`.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_HALF)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's own mode would keep other users out
        os.replace(name, path)
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


def remove_halves(folder: Path, older_than: float = 0) -> None:
    """Deletes from a folder what killed processes were writing, as far as it may be written.

    Args:
        older_than: in seconds; above 0 where another process may be writing.
    """
    for half in folder.glob(f".*{_HALF}"):
        with suppress(OSError):  # another process was faster, or the folder is read-only
            if half.stat().st_mtime <= time.time() - older_than:
                half.unlink()


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
