"""Config files in TOML: shipped ones, the user's own, and the one that every run writes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hypernoise_core.text_file import read_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIGS = Path(__file__).with_name("configs")
_LARGEST = 100_000
"""Bytes in a config file. Shipped ones have less than 1,000, that of a run about 2,000."""
_MOST_DOTS = 1000
"""Dots in a line. The parser needs minutes and gigabytes for a key with very many parts."""
_BACKSLASHES = (
    "in double quotes a backslash starts an escape such as \\n; write a Windows path in 'single "
    "quotes', or with forward slashes"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def find_config(name: str | Path) -> Path:
    """The .toml file at a path, or the shipped config of that name.

    Raises:
        FileNotFoundError: there is no such file; lists the shipped configs.
    """
    name = Path(name).expanduser()
    path = name if name.suffix else CONFIGS / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
        raise FileNotFoundError(f"there is no config file {path}; shipped configs: {shipped}")
    return path


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a config file.

    Raises:
        ValueError: the file cannot be read; names it.
    """
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise ValueError(f"it has {size} bytes, more than {_LARGEST}")
        return _parse(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a valid TOML file: {error}") from error


def check_path(text: str, where: str) -> None:
    """Refuse control characters, which a Windows path in double quotes turns into.

    Raises:
        ValueError: the path contains a control character; names `where` it is from.
    """
    if control := _CONTROL.search(text):
        raise ValueError(
            f"{where} contains {control[0]!r}, which no path can contain: {_BACKSLASHES}"
        )


def to_toml(settings: DataclassInstance) -> str:
    """All settings as `--config` reads them, without None, which TOML lacks, and without ()."""
    import tomli_w

    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return tomli_w.dumps({k: _plain(v) for k, v in values.items() if v not in (None, ())})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _parse(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    for number, line in enumerate(text.split("\n"), 1):
        if (dots := line.count(".")) > _MOST_DOTS:
            raise ValueError(f"line {number} has {dots} dots, more than {_MOST_DOTS}")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        line = re.search(r"at line (\d+)", str(error))
        if line is None or "\\" not in text.split("\n")[int(line[1]) - 1]:
            raise
        raise ValueError(f"{error}; {_BACKSLASHES}") from error
