"""Faults that a run brings about itself, at a moment that is the same each time."""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

CALLS = "calls.txt"
_CHANGES = ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.chmod")
_WRITING = os.O_WRONLY | os.O_RDWR


class _Calls:
    """Counts what changes a folder, and kills the process at one of the calls."""

    def __init__(self, folder: Path, fatal: int) -> None:
        self.folder, self.fatal, self.count = f"{folder}/", fatal, 0

    def is_inside(self, path: object) -> bool:
        return os.path.abspath(os.fspath(path)).startswith(self.folder)

    def is_fatal(self) -> bool:
        self.count += 1
        return self.count == self.fatal

    def next(self) -> None:
        if self.is_fatal():
            os.kill(os.getpid(), signal.SIGKILL)


class _Torn:
    """A file whose write number 1, 2, 4, 8 ... counts as a call; half of the fatal one arrives."""

    def __init__(self, file: Any, calls: _Calls) -> None:
        self._file, self._calls, self._writes = file, calls, 0

    def write(self, data: Any) -> int:
        self._writes += 1
        counts = self._writes & (self._writes - 1) == 0
        if counts and self._calls.is_fatal():
            self._file.write(bytes(data)[: len(data) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def die_at_call(folder: str, fatal: int) -> None:
    """kill -9 at the n-th call that changes something below a folder; 0 only counts.

    Calls: before a file is opened to be written, brought to the disk, given its mode, renamed,
    truncated or deleted, before a folder is made, and in the middle of a write. Their number is
    written to calls.txt beside the folder at the end.
    """
    calls = _Calls(Path(folder), fatal)

    def audit(event: str, arguments: tuple) -> None:
        writes = event == "open" and arguments[2] is not None and arguments[2] & _WRITING
        if (writes or event in _CHANGES) and isinstance(arguments[0], str | os.PathLike):
            if calls.is_inside(arguments[0]):
                calls.next()

    open_, fsync = io.open, os.fsync

    def tearing_open(file: Any, mode: str = "r", *options: Any, **more: Any) -> Any:
        opened = open_(file, mode, *options, **more)
        path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else file
        writes = "w" in mode or "a" in mode
        return _Torn(opened, calls) if writes and calls.is_inside(path) else opened

    def counted_fsync(descriptor: int) -> None:
        if calls.is_inside(os.readlink(f"/proc/self/fd/{descriptor}")):
            calls.next()
        fsync(descriptor)

    io.open, os.fsync = tearing_open, counted_fsync
    sys.addaudithook(audit)
    path = Path(folder).with_name(CALLS)
    atexit.register(lambda: path.write_text(str(calls.count)))
