"""Checks, before any work is done, that an output can be written and that it replaces nothing that
the command did not write itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from ..hypernoise_core.atomic_file import write_target


def check_folder(folder: Path, flag: str) -> None:
    """Check that the folder is writable, or can be created; leaves nothing behind.

    Args:
        flag: the flag that sets the folder, for the message.

    Raises:
        OSError: the folder is not writable; names the flag.
    """
    _check(folder, f"{flag} {folder}", flag)


def check_file(file: Path, flag: str, *, replace: bool) -> None:
    """The same for a file, which is written to its folder first and then moved into place.

    Args:
        replace: whether an existing file may be replaced.

    Raises:
        FileExistsError: the file exists and must not be replaced.
        OSError: it cannot be written; names the flag.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{flag} {file} is a folder; give a file")
    given = f"{flag} {file}"
    try:
        target = write_target(file)
    except OSError as error:  # such as a name that is too long
        raise type(error)(f"{given}: {error.strerror}; choose another {flag}") from error
    if target.exists() and not replace:
        raise FileExistsError(f"{given} already exists: choose another {flag}, or add --force")
    _check(target.parent, given, flag)


def check_others(folder: Path, flag: str, names: Iterable[str]) -> None:
    """Check that a folder which the command did not create has no file of one of these names.

    Raises:
        FileExistsError: it has one, which the command would replace.
    """
    if other := next((name for name in names if (folder / name).exists()), None):
        raise FileExistsError(
            f"{flag} {folder} contains {other}, which this command did not write and would "
            f"replace: choose another {flag}, or move that file away"
        )


def _check(folder: Path, given: str, flag: str) -> None:
    places = (folder, *folder.absolute().parents)
    try:
        there = next(path for path in places if path.exists() or path.is_symlink())
        is_folder = there.is_dir()
    except OSError as error:  # such as a name that is too long
        raise type(error)(f"{given}: {error.strerror}; choose another {flag}") from error
    if not is_folder:
        raise NotADirectoryError(f"{given}: {there} is a file, not a folder; choose another {flag}")
    try:
        with tempfile.TemporaryFile(dir=there, buffering=0) as file:
            file.write(b"?")
    except OSError as error:
        raise type(error)(
            f"{given}: {there} is not writable ({error.strerror}); choose another {flag}, or "
            f"make it writable"
        ) from error
