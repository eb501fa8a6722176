"""A lock that one process at a time holds on what it writes; the system takes it back from a
process that is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def lock(path: Path, refusal: str) -> FileLock:
    """Takes the lock, without waiting for it.

    Args:
        path: of the lock's file, which stays when the lock is released.
        refusal: what to say where another process holds it.

    Raises:
        ValueError: another process holds it.
        OSError: its file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = FileLock(path)
    try:
        taken.acquire(timeout=0)
    except Timeout:
        raise ValueError(refusal) from None
    return taken


@contextmanager
def passing_lock(path: Path, refusal: str) -> Iterator[None]:
    """Holds the lock in the block, and leaves no file behind. Raises what `lock` raises."""
    held = lock(path, refusal)
    try:
        yield
    finally:
        # Before it is released: a process that had opened the file sees that it is gone, and a
        # later one makes a new file. Windows deletes no file that is open: there the release does.
        with suppress(OSError):
            path.unlink()
        held.release()
