"""Whether a place can be written, tried before the work whose result it is to take, and whether
something lies there that is not the command's own to replace."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from ..hypernoise_core.atomic_file import write_target


def check_folder(folder: Path, flag: str) -> None:
    """Writes into the folder, or where it is to be made, and leaves nothing behind.

    Args:
        flag: what the folder is given by, for the message.

    Raises:
        OSError: it cannot be written; names the flag.
    """
    _check(folder, f"{flag} {folder}", flag)


def check_file(file: Path, flag: str, *, replace: bool) -> None:
    """The same for a file, which is written beside its place and then moved there.

    Args:
        replace: whether a file that is there may be replaced.

    Raises:
        FileExistsError: it is there and may not.
        OSError: it cannot be written; names the flag.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{flag} {file} is a folder: name a file")
    given = f"{flag} {file}"
    try:
        target = write_target(file)
    except OSError as error:  # such as a name that is too long
        raise type(error)(f"{given}: {error.strerror}; choose another {flag}") from error
    if target.exists() and not replace:
        raise FileExistsError(f"{given} is there already: choose another {flag}, or add --force")
    _check(target.parent, given, flag)


def check_others(folder: Path, flag: str, names: Iterable[str]) -> None:
    """Makes sure that a folder that is none of the command's own holds none of its files' names.

    Raises:
        FileExistsError: it holds one, which the command would replace.
    """
    if other := next((name for name in names if (folder / name).exists()), None):
        raise FileExistsError(
            f"{flag} {folder} holds {other}, which this command has not written and would replace: "
            f"choose another {flag}, or move that away"
        )


def _check(folder: Path, given: str, flag: str) -> None:
    places = (folder, *folder.absolute().parents)
    try:
        there = next(path for path in places if path.exists() or path.is_symlink())
        is_folder = there.is_dir()
    except OSError as error:  # such as a name that is too long
        raise type(error)(f"{given}: {error.strerror}; choose another {flag}") from error
    if not is_folder:
        raise NotADirectoryError(
            f"{given}: {there} is a file, and no folder can be made of it; choose another {flag}"
        )
    try:
        with tempfile.TemporaryFile(dir=there, buffering=0) as file:
            file.write(b"?")
    except OSError as error:
        raise type(error)(
            f"{given}: {there} cannot be written ({error.strerror}); choose another {flag}, or "
            f"make it writable"
        ) from error
