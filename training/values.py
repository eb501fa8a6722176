"""Values as people write them, on the command line and in config files: their types, and ~."""

from __future__ import annotations

import os
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo


def expand_home(text: str) -> str:
    """The text with the home directory in place of ~ or ~NAME at its beginning, as shells do it."""
    return os.path.expanduser(text)


Place = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: expand_home(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda text: [text],
    ),
]
"""A text that names a file or a folder where it is no other name, such as that of a model."""

FLAGS = ConstructorRegistry()
"""How tyro reads the types that it knows otherwise: a Path with its ~ expanded."""


@FLAGS.primitive_rule
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: Path(expand_home(words[0])),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def bare(kind: Any) -> Any:
    """The type of what is given, without None and annotations; a `Place` stays one."""
    if get_origin(kind) is Annotated and kind != Place:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    return kind


def is_place(kind: Any) -> bool:
    """Whether texts of that type, as `bare` gives it, name files or folders."""
    return kind is Path or kind == Place


def read_value(kind: Any, text: str) -> Any:
    """A text of a config file as a Place, a Path or one of a Literal's.

    Raises:
        ValueError: it is none; says what it has to be.
    """
    if get_origin(kind) is Literal and text not in get_args(kind):
        raise ValueError(f"must be one of {', '.join(get_args(kind))}, not {text!r:.60}")
    if is_place(kind):
        text = expand_home(text)
    return Path(text) if kind is Path else text
