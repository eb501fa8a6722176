"""JSON objects from untrusted sources."""

from __future__ import annotations

import json
from typing import Any


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object in a JSON text; duplicate keys are an error.

    Raises:
        ValueError: says what is wrong.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"JSON with the duplicate key {name[:100]!r}")
        found[name] = value
    return found
