"""The keys of LoRA files: the layer and factor that each belongs to, and whether it is usable."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import AdapterError
from .metadata import check_alpha

PREFIXES = (
    "base_model.model.",  # peft
    "transformer.",  # diffusers, these two
    "unet.",
    "diffusion_model.",  # ComfyUI
    "module.",  # DistributedDataParallel and DataParallel
)
"""Prefixes that programs put before a layer's name, also several in a row."""
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put anywhere into a name."""
OTHER_NAMES = {
    r"(lora_(unet|te\d?|transformer)|lycoris)_": (
        "kohya's (lora_unet_..., lora_te_...), as used by LoRAs for the generator"
    ),
    r"(double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|final_layer)(\.|$)": (
        "Black Forest Labs', as also used by ComfyUI"
    ),
    r"(input_blocks|middle_block|output_blocks)\.": ("Stability AI's, as also used by ComfyUI"),
}
"""Pattern of layer names that are not diffusers', and whose they are."""

_LORA = re.compile(r"\.lora[._]|\.alpha$")
_FACTOR = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<factor>A|B|down|up)|lora\.(?P<old>down|up))"
    r"(?:\.(?P<adapter>[^.]+))?\.weight"
)
_DOWN = ("A", "down")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_ALPHA_DTYPES = (*_DTYPES, torch.int64, torch.int32)
SHOWN_KEYS = 8
MAX_KEY = 512  # characters


@dataclass
class LayerWeights:
    """What a file holds for one layer."""

    written: str
    """The layer's name as it stands in the file, but for peft's own prefix."""
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass
class ParsedWeights:
    """A file's tensors by layer."""

    layers: dict[str, LayerWeights] = field(default_factory=dict)
    adapter_names: set[str] = field(default_factory=set)


def plain_name(key: str) -> str:
    """The key without any of `PREFIXES` before it and any of `WRAPPERS` in it."""
    key = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    start = 0
    while prefix := next((p for p in PREFIXES if key.startswith(p, start)), None):
        start += len(prefix)
    return key[start:]


def whose_names(names: Iterable[str]) -> str:
    """The part of an error message about names of `OTHER_NAMES`; "" where there are none."""
    plain = [plain_name(name) for name in names]
    for pattern, whose in OTHER_NAMES.items():
        if any(re.match(pattern, name) for name in plain):
            return (
                f". These names are {whose}; a noise hypernetwork uses diffusers' names. Load a "
                f"LoRA for the generator like any other LoRA, with ComfyUI's Load LoRA or "
                f"pipeline.load_lora_weights"
            )
    return ""


def parse_weights(tensors: Mapping[str, Tensor]) -> ParsedWeights:
    """Sort a file's tensors into layers.

    Raises:
        AdapterError: a key is not a LoRA weight; a factor is missing, duplicated, not finite, or of
            an unsupported dtype or shape; or the file holds several adapters. Names the keys or
            layers.
    """
    parsed = ParsedWeights()
    unknown = []
    for key, tensor in tensors.items():
        if len(key) > MAX_KEY or not _take(parsed, key, tensor):
            unknown.append(key)
    if unknown:
        raise AdapterError(
            f"{len(unknown)} keys are not weights of a plain LoRA (lora_A, lora_B, alpha): "
            f"{name_some(unknown)}{whose_names(unknown)}"
        )
    if len(parsed.adapter_names) > 1:
        names = ", ".join(sorted(parsed.adapter_names))
        raise AdapterError(
            f"the file contains several adapters ({names}): save each in its own file"
        )
    incomplete = [
        name for name, layer in parsed.layers.items() if layer.down is None or layer.up is None
    ]
    if incomplete:
        raise AdapterError(f"one of lora_A and lora_B is missing for {name_some(incomplete)}")
    if not parsed.layers:
        raise AdapterError("the file contains no weights")
    _check_shapes(parsed.layers)
    _check_numbers(parsed.layers)
    return parsed


def _check_shapes(layers: Mapping[str, LayerWeights]) -> None:
    wrong = [
        f"{name} (A {tuple(weights.down.shape)}, B {tuple(weights.up.shape)})"
        for name, weights in layers.items()
        if not _are_factors(weights.down, weights.up)
    ]
    if wrong:
        raise AdapterError(
            f"{len(wrong)} layers have weights that are not two factors of a rank of 1 or more: "
            f"{name_some(wrong)}"
        )


def _are_factors(down: Tensor, up: Tensor) -> bool:
    """Whether A (r, i) and B (o, r), or those of a convolution, B of groups of r as well."""
    if down.ndim != up.ndim or down.numel() == 0 or up.numel() == 0:
        return False
    if down.ndim == 2:
        return up.shape[1] == down.shape[0]
    return up.shape[2:] == (1, 1) and down.shape[0] % up.shape[1] == 0


def _check_numbers(layers: Mapping[str, LayerWeights]) -> None:
    wrong = []
    for name, weights in layers.items():
        if weights.alpha is not None:
            try:
                check_alpha(weights.alpha)
            except AdapterError as error:
                raise AdapterError(f"layer {name}: {error}") from error
        for tensor in (weights.down, weights.up):
            if not all(map(torch.isfinite, tensor.aminmax())):
                wrong.append(f"{name} ({_count_bad(tensor)} of {tensor.numel()})")
    if wrong:
        raise AdapterError(
            f"weights that are NaN or infinite, probably from a training run that diverged: "
            f"{name_some(wrong)}; use the adapter of an earlier checkpoint"
        )


def _count_bad(tensor: Tensor) -> int:
    """How many elements are not finite, without allocating another tensor of that size."""
    parts = tensor.flatten().split(1 << 20)
    return sum(len(part) - int(torch.isfinite(part).count_nonzero()) for part in parts)


def _take(parsed: ParsedWeights, written: str, tensor: Tensor) -> bool:
    """Put one tensor in its place; False if the key has none."""
    key = plain_name(written)
    written = _LORA.split(written)[0].removeprefix(PREFIXES[0])
    if key.endswith(".alpha") and tensor.numel() == 1 and tensor.dtype in _ALPHA_DTYPES:
        _set_once(parsed, key.removesuffix(".alpha"), written, "alpha", float(tensor))
        return True
    match = _FACTOR.fullmatch(key)
    if match is None or tensor.ndim not in (2, 4):
        return False
    if tensor.dtype not in _DTYPES:
        raise AdapterError(
            f"{key} has the dtype {tensor.dtype}; adapter weights must be float32, float16 or "
            f"bfloat16"
        )
    if match["adapter"] is not None:
        parsed.adapter_names.add(match["adapter"])
    factor = match["factor"] or match["old"]
    _set_once(parsed, match["layer"], written, "down" if factor in _DOWN else "up", tensor)
    return True


def _set_once(
    parsed: ParsedWeights, layer: str, written: str, part: str, value: Tensor | float
) -> None:
    weights = parsed.layers.setdefault(layer, LayerWeights(written))
    # Several adapters in one file, which parse_weights refuses by name, also meet here.
    if getattr(weights, part) is not None and len(parsed.adapter_names) < 2:
        raise AdapterError(f"the file has {part!r} of layer {layer} twice, under different keys")
    setattr(weights, part, value)  # a field of LayerWeights, by name


def name_some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
    return ", ".join(map(_shown, names[:SHOWN_KEYS])) + more


def _shown(name: str) -> str:
    """The name, or its repr where it is not printable or very long."""
    return name if name.isprintable() and len(name) < MAX_KEY else repr(name[:MAX_KEY])
