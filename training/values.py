"""Values as people write them, on the command line and in config files: their types, and ~."""

from __future__ import annotations

import os
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

Place = Annotated[str, "a file or folder, or a name"]
"""A text that names a file or a folder where it is no other name, such as that of a model."""


def bare(kind: Any) -> Any:
    """The type of what is given, without None; a `Place` stays one."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    return kind


def is_place(kind: Any) -> bool:
    """Whether texts of that type, as `bare` gives it, name files or folders."""
    return kind is Path or kind == Place


def expand_home(text: str) -> str:
    """The text with the home directory in place of ~ or ~NAME at its beginning, as shells do it."""
    return os.path.expanduser(text)


def read_value(kind: Any, text: str) -> Any:
    """A text as a value of a type: str, Place, Path, Literal, int or float.

    Raises:
        ValueError: it is none; says what it has to be.
    """
    kind = bare(kind)
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
        raise ValueError(f"must be one of {', '.join(get_args(kind))}, not {text!r:.60}")
    if is_place(kind):
        text = expand_home(text)
    try:
        return text if kind == Place else kind(text)
    except ValueError:
        raise ValueError(f"must be of type {kind.__name__}, not {text!r:.60}") from None
