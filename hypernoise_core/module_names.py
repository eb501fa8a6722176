"""The keys of LoRA files: which layer, which factor, behind which prefix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .metadata import AdapterError

PREFIXES = ("base_model.model.", "transformer.", "unet.")
"""What writers put before a layer's name, also one behind the other."""

_FACTOR = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<factor>A|B|down|up)|lora\.(?P<old>down|up))"
    r"(?:\.(?P<adapter>[^.]+))?\.weight"
)
_DOWN = ("A", "down")
SHOWN_KEYS = 8


@dataclass
class LayerWeights:
    """What a file holds for one layer."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


@dataclass
class ParsedWeights:
    """A file's tensors by layer."""

    layers: dict[str, LayerWeights] = field(default_factory=dict)
    adapter_names: set[str] = field(default_factory=set)


def strip_prefixes(key: str) -> str:
    """The key without any of `PREFIXES` before it."""
    while prefix := next((p for p in PREFIXES if key.startswith(p)), None):
        key = key.removeprefix(prefix)
    return key


def parse_weights(tensors: Mapping[str, Tensor]) -> ParsedWeights:
    """Sort a file's tensors into layers.

    Raises:
        AdapterError: a key is no LoRA weight, a factor is missing or there twice, or the file holds
            several adapters; all keys concerned are named.
    """
    parsed = ParsedWeights()
    unknown = []
    for key, tensor in tensors.items():
        if not _take(parsed, strip_prefixes(key), tensor):
            unknown.append(key)
    if unknown:
        raise AdapterError(
            f"{len(unknown)} keys are no weights of a plain LoRA (lora_A, lora_B, alpha): "
            f"{name_some(unknown)}"
        )
    if len(parsed.adapter_names) > 1:
        names = ", ".join(sorted(parsed.adapter_names))
        raise AdapterError(f"the file holds several adapters ({names}): save them one by one")
    halves = [
        name for name, layer in parsed.layers.items() if layer.down is None or layer.up is None
    ]
    if halves:
        raise AdapterError(f"one of lora_A and lora_B is missing for {name_some(halves)}")
    if not parsed.layers:
        raise AdapterError("the file holds no weights")
    return parsed


def _take(parsed: ParsedWeights, key: str, tensor: Tensor) -> bool:
    """Put one tensor in its place; False if the key has none."""
    if key.endswith(".alpha") and tensor.numel() == 1:
        _set_once(parsed, key.removesuffix(".alpha"), "alpha", float(tensor))
        return True
    match = _FACTOR.fullmatch(key)
    if match is None or tensor.ndim not in (2, 4) or not tensor.is_floating_point():
        return False
    if match["adapter"] is not None:
        parsed.adapter_names.add(match["adapter"])
    factor = match["factor"] or match["old"]
    _set_once(parsed, match["layer"], "down" if factor in _DOWN else "up", tensor)
    return True


def _set_once(parsed: ParsedWeights, layer: str, part: str, value: Tensor | float) -> None:
    weights = parsed.layers.setdefault(layer, LayerWeights())
    # Several adapters in one file, which parse_weights refuses by name, also meet here.
    if getattr(weights, part) is not None and len(parsed.adapter_names) < 2:
        raise AdapterError(f"the file has {part!r} of layer {layer} twice, under different keys")
    setattr(weights, part, value)


def name_some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
    return ", ".join(names[:SHOWN_KEYS]) + more
