"""peft's LoRA configuration: the ranks and alphas in it, and the options that are refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import AdapterError, PatternError
from .layer_pattern import FORMS, LayerPattern
from .lora_branch import LoraBranch
from .metadata import AdapterMetadata, check_alpha
from .strict_json import parse_object
from .text_file import read_text

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
MAX_BYTES = 4 << 20
MAX_CHARACTERS = 200_000
"""Of all patterns of a field; one for each layer of FLUX takes 25,000."""
MAX_STEPS = 50_000_000
"""Of the search for all layers' patterns; some ten seconds."""

# Options that change what the adapter computes, so that its A and B alone would give wrong results.
UNSUPPORTED = (
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "megatron_config",
)
# Initialisations that also change the base weights: pissa, olora, corda, loftq, lora_ga, ...
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


class PeftConfig:
    """What a LoRA configuration says about ranks and scales.

    Args:
        values: the configuration's fields, absent ones at peft's defaults.
        layers: names of the adapted layers, each with the one that stands in the file: patterns
            may be for either, because the network may have been wrapped before or behind peft.

    Raises:
        AdapterError: names the field that asks for more than plain LoRA, is of another type, or has
            patterns of a form that is not read or that could take long to match.
    """

    def __init__(self, values: Mapping[str, Any], layers: Mapping[str, str]) -> None:
        refuse_unsupported(values)
        self.base_model = _typed(values, "base_model_name_or_path", str) or None
        """The generator's repository or folder."""
        self.ranks: dict[str, int] = _by_layer(values, "r", "rank_pattern", _rank, layers)
        """The rank of each layer."""
        self.alphas: dict[str, float] = _by_layer(
            values, "lora_alpha", "alpha_pattern", _alpha, layers
        )
        """The alpha of each layer, such that its scale is alpha / rank also under use_rslora."""
        if _typed(values, "use_rslora", bool):
            self.alphas = {
                layer: _alpha("lora_alpha", alpha * math.sqrt(self.ranks[layer]))
                for layer, alpha in self.alphas.items()
            }

    @classmethod
    def read(cls, path: Path, layers: Mapping[str, str]) -> PeftConfig:
        """Read an adapter_config.json.

        Raises:
            AdapterError: it is not such a file.
        """
        try:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise ValueError(f"it has {size} bytes, far more than a LoRA configuration")
            values = parse_object(read_text(path))
        except (OSError, ValueError) as error:
            raise AdapterError(f"{path} cannot be read: {error}") from error
        try:
            return cls(values, layers)
        except AdapterError as error:
            raise AdapterError(f"{path}: {error}") from error


def refuse_unsupported(values: Mapping[str, Any]) -> None:
    """Raise an AdapterError that names the fields which ask for more than plain LoRA."""
    asked = [
        name
        for name, value in values.items()
        if value and (name in UNSUPPORTED or (name.startswith("use_") and name != "use_rslora"))
    ]
    if values.get("peft_type", "LORA") != "LORA":
        asked.append("peft_type")
    if values.get("bias", "none") != "none":
        asked.append("bias")
    init = values.get("init_lora_weights", True)
    if not (isinstance(init, bool) or init in PLAIN_INITS):
        asked.append("init_lora_weights")
    if asked:
        fields = ", ".join(f"{name}={_short(values[name])}" for name in asked)
        raise AdapterError(
            f"unsupported in a noise hypernetwork: {fields}; only plain LoRA is supported"
        )


def _by_layer(
    values: Mapping[str, Any],
    field: str,
    pattern_field: str,
    read: Callable[[str, object], Any],
    layers: Mapping[str, str],
) -> dict[str, Any]:
    """The value of each layer: that of the first pattern that matches its whole name or the name's
    end after a dot, which is peft's rule, else the field's.

    A pattern is a regular expression from whoever wrote the file, so those of `layer_pattern`'s
    forms alone are read.
    """
    default = read(field, values.get(field))
    patterns = _typed(values, pattern_field, dict) or {}
    names = {*layers, *layers.values()}
    too_many = AdapterError(
        f"{pattern_field} has too many patterns, or patterns that are too complex"
    )
    if sum(map(len, patterns)) > MAX_CHARACTERS:
        raise too_many
    found = [
        (_parsed(pattern_field, pattern), read(f"{pattern_field}[{_short(pattern)}]", value))
        for pattern, value in patterns.items()
    ]
    if sum(pattern.steps(names) for pattern, _ in found) > MAX_STEPS:
        raise too_many

    def of(layer: str, written: str) -> Any:
        spellings = {layer, written}
        fitting = (value for pattern, value in found if any(map(pattern.matches, spellings)))
        return next(fitting, default)

    return {layer: of(layer, written) for layer, written in layers.items()}


def _parsed(field: str, pattern: str) -> LayerPattern:
    try:
        return LayerPattern(pattern)
    except PatternError as error:
        raise AdapterError(
            f"{field} has an unsupported pattern, {_short(pattern)}: {error}; a pattern may "
            f"contain {FORMS}"
        ) from error


def _rank(field: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AdapterError(f"{field} must be a whole number of at least 1, got {_short(value)}")
    return value


def _alpha(field: str, value: object) -> float:
    try:
        check_alpha(value)
    except AdapterError as error:
        raise AdapterError(f"{field}: {error}") from error
    return float(value)


def _typed(values: Mapping[str, Any], field: str, kind: type) -> Any:
    value = values.get(field)
    if value is not None and not isinstance(value, kind):
        raise AdapterError(f"{field} must be a {kind.__name__}, got {_short(value)}")
    return value


def _short(value: object) -> str:
    return repr(value)[:100]


def config_for(branches: Mapping[str, LoraBranch], metadata: AdapterMetadata) -> dict[str, Any]:
    """The configuration with which peft computes what the branches compute."""
    branches = dict(sorted(branches.items()))  # whatever the order, the same text
    ranks = {name: b.rank for name, b in branches.items() if b.rank != metadata.rank}
    alphas = {name: b.alpha for name, b in branches.items() if b.alpha != metadata.alpha}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": metadata.base_model,
        "inference_mode": True,
        "r": metadata.rank,
        "lora_alpha": metadata.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": "gaussian",
        "rank_pattern": {_exactly(name): rank for name, rank in ranks.items()},
        "alpha_pattern": {_exactly(name): alpha for name, alpha in alphas.items()},
        # A pattern, because peft takes a name in a list as an ending: "proj_out" is one of many.
        "target_modules": _any_of(branches),
    }


def _exactly(name: str) -> str:
    return "^" + re.escape(name)


def _any_of(names: Iterable[str]) -> str:
    return "(" + "|".join(re.escape(name) for name in names) + ")"
