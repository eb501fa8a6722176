"""Reading text files from any program: byte order marks, line endings, blank lines."""

from __future__ import annotations

import re
import stat
import sys
import unicodedata
from pathlib import Path

STDIN = Path("-")
"""The path that means standard input, where a file is only read once."""

_LINE_END = re.compile("\r\n|\r|\n")
_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # categories: control, format such as U+200B, spaces


def read_text(path: Path) -> str:
    r"""The text of a UTF-8 file, with every line ending as \n and without a byte order mark.

    Args:
        path: a file, a pipe opened by a shell (/dev/stdin, <(...)), or `STDIN`.

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
    # Any other pipe may never be written to.
    if not (stat.S_ISREG(mode) or (stat.S_ISFIFO(mode) and is_open)):
        raise ValueError(f"{path} is not a text file")
    return path.read_bytes()


def lines(text: str) -> list[str]:
    r"""The lines of a text without their endings, which are \n, \r\n or \r.

    `str.splitlines` would also split at form feeds, U+0085 and U+2028, which occur inside prompts
    and JSON.
    """
    found = _LINE_END.split(text)
    return found[:-1] if found[-1] == "" else found


def is_blank(text: str) -> bool:
    """Whether it has no visible character, only spaces, control and zero-width characters."""
    return all(unicodedata.category(character) in _INVISIBLE for character in text)
