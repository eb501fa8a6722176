"""A lock on an output that one process at a time holds; the operating system releases it when the
process is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def lock(path: Path, refusal: str) -> FileLock:
    """Acquire the lock without waiting.

    Args:
        path: lock file, which remains after the lock is released.
        refusal: error message if another process holds the lock.

    Raises:
        ValueError: another process holds the lock.
        OSError: the lock file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    acquired = FileLock(path)
    try:
        acquired.acquire(timeout=0)
    except Timeout:
        raise ValueError(refusal) from None
    return acquired


@contextmanager
def passing_lock(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock for the duration of the block, then delete its file. Raises as `lock` does."""
    held = lock(path, refusal)
    try:
        yield
    finally:
        # Before the release: a process that has opened the file sees that it is gone, and a later
        # one creates a new file. Windows cannot delete an open file: there the release does it.
        with suppress(OSError):
            path.unlink()
        held.release()
