"""Text as people's programs write it: byte order marks, line ends, lines that show nothing."""

from __future__ import annotations

import re
import stat
import sys
import unicodedata
from pathlib import Path

STDIN = Path("-")
"""The path that means standard input, where a file is read only once."""

_LINE_END = re.compile("\r\n|\r|\n")
_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # categories: control, format such as U+200B, spaces


def read_text(path: Path) -> str:
    r"""The text of a file in UTF-8; lines end in \n, whatever ended them.

    The byte order mark, with which Windows' programs begin a file, is left out.

    Args:
        path: a file, a pipe that a shell has opened (/dev/stdin, <(...)), or `STDIN`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file, or not UTF-8; names the file and the line.
    """
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: this is not UTF-8; save the file as UTF-8"
        ) from None
    return _LINE_END.sub("\n", text)


def _read(path: Path) -> bytes:
    if path == STDIN:
        return sys.stdin.buffer.read()
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    mode = path.stat().st_mode
    is_open = path.is_absolute() and path.parts[1] in ("dev", "proc")
    # Any other pipe may have nobody who ever writes into it.
    if not (stat.S_ISREG(mode) or (stat.S_ISFIFO(mode) and is_open)):
        raise ValueError(f"{path} is not a text file")
    return path.read_bytes()


def lines(text: str) -> list[str]:
    r"""The lines of a text without their ends, which are \n, \r\n or \r.

    `str.splitlines` would also cut at form feeds and at U+0085 and U+2028, which stand inside of
    people's prompts and of JSON.
    """
    found = _LINE_END.split(text)
    return found[:-1] if found[-1] == "" else found


def is_blank(text: str) -> bool:
    """Whether nothing of it can be seen: spaces, control and zero-width characters at most."""
    return all(unicodedata.category(character) in _INVISIBLE for character in text)
