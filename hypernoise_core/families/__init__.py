"""The families of generators. A new one is one file here and one line in `FAMILIES`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .derived import Derived
from .family import Conditioning, Family, Generators
from .flux import FLUX
from .sana_sprint import SANA_SPRINT
from .sd_turbo import SD_TURBO

__all__ = [
    "FAMILIES",
    "Conditioning",
    "Derived",
    "Family",
    "Generators",
    "family_of_adapter",
    "family_of_pipeline",
    "get_family",
    "looks_like",
]

FAMILIES: tuple[Family, ...] = (
    SANA_SPRINT,
    FLUX,
    SD_TURBO,
)


def get_family(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: names the known ones.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ValueError(f"unknown family {name!r}, choose from {known}")


def family_of_adapter(name: str, last_layer: str) -> Family:
    """The family that an adapter names, derived from its metadata where the registry has none."""
    known = next((family for family in FAMILIES if family.name == name), None)
    return known or Derived(name, last_layer)


def family_of_pipeline(pipeline: Any) -> Family:
    """The family of a diffusers pipeline, by the name of its class or of a class it derives from.

    Raises:
        ValueError: names the known pipelines.
    """
    classes = {cls.__name__ for cls in type(pipeline).__mro__}
    for family in FAMILIES:
        if family.pipeline_class in classes:
            return family
    known = ", ".join(family.pipeline_class for family in FAMILIES)
    raise ValueError(f"no family uses a {type(pipeline).__name__}, known pipelines are {known}")


def looks_like(layer_names: Iterable[str]) -> Family | None:
    """The family whose signature most of the layer names match; None where no name matches any."""
    names = list(layer_names)
    matches = {f: sum(bool(re.match(f.signature, name)) for name in names) for f in FAMILIES}
    best = max(matches, key=matches.__getitem__)
    return best if matches[best] else None
