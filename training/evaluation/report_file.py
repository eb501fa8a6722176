"""Writes and reads report.json."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ...hypernoise_core.strict_json import parse_object
from ...hypernoise_core.text_file import read_text
from ..report.page import write_json
from .results import Report

_NAMES = {float: "a number", int: "a whole number", str: "a text"}
_hints = cache(get_type_hints)


def write_report_file(path: Path, report: Report) -> None:
    """Writes report.json."""
    write_json(path, _plain(report))


def read_report_file(path: Path) -> Report:
    """The results in report.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a report of `hypernoise evaluate`; names the file and the key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no report {path}; `hypernoise evaluate` writes one")
    try:
        return _typed(Report, parse_object(read_text(path)), "")
    except ValueError as error:
        raise ValueError(
            f"{path} is not a report.json of `hypernoise evaluate`, or of another version: {error}"
        ) from error


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, without fields that have their default."""
    if is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in fields(value)
            if field.default is MISSING or getattr(value, field.name) != field.default
        }
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _typed(kind: Any, value: Any, key: str) -> Any:
    """A value of JSON as that type.

    Args:
        key: where the value is in the file, such as steps.1.base.

    Raises:
        ValueError: the value, or one inside it, is of another type or missing; names its key.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _object(kind, _expect(dict, value, key), key)
    if origin in (Union, UnionType):
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else _typed(inner, value, key)
    if origin is dict:
        of_key, of_value = arguments
        items = _expect(dict, value, key).items()
        return {_name(of_key, n, key): _typed(of_value, v, _join(key, n)) for n, v in items}
    if origin is list:
        items = enumerate(_expect(list, value, key))
        return [_typed(arguments[0], item, _join(key, i)) for i, item in items]
    if origin is tuple:
        if len(_expect(list, value, key)) != len(arguments):
            raise ValueError(f"{key} has {len(value)} entries instead of {len(arguments)}")
        items = enumerate(zip(arguments, value, strict=True))
        return tuple(_typed(of, item, _join(key, i)) for i, (of, item) in items)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{key} is {value!r:.100} instead of {' or '.join(arguments)}")
        return value
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{key} is too large") from error
    return _expect(kind, value, key)


def _object(kind: type, values: dict[str, Any], key: str) -> Any:
    given = {}
    for field in fields(kind):
        if field.name in values:
            of_field = _hints(kind)[field.name]
            given[field.name] = _typed(of_field, values[field.name], _join(key, field.name))
        elif field.default is MISSING:
            raise ValueError(f"{_join(key, field.name)} is missing")
    return kind(**given)


def _name(kind: type, text: str, key: str) -> Any:
    """A key of an object, which may have to be a number."""
    if kind is str:
        return text
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{_join(key, text)}: {text[:100]!r} is not a number of steps")
    return int(text)


def _expect(kind: type, value: Any, key: str) -> Any:
    if type(value) is not kind:
        expected = _NAMES.get(kind, "an object" if kind is dict else "a list")
        raise ValueError(f"{key or 'the file'} is {value!r:.100} instead of {expected}")
    return value


def _join(key: str, name: object) -> str:
    return f"{key}.{name!s:.100}".removeprefix(".")
