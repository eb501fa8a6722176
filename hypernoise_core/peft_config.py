"""peft's LoRA configuration: the ranks and alphas it states, and what it states that we refuse."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .lora import LoraBranch
from .metadata import AdapterError, AdapterMetadata

CONFIG_NAME = "adapter_config.json"

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

    Raises:
        AdapterError: names the field that asks for more than plain LoRA.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        refuse_unsupported(values)
        try:
            self.rank = int(values["r"])
            self.alpha = float(values["lora_alpha"])
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"the LoRA configuration lacks a number for {error}") from error
        self.use_rslora = bool(values.get("use_rslora"))

    @classmethod
    def read(cls, path: Path) -> PeftConfig:
        """Read an adapter_config.json.

        Raises:
            AdapterError: it is no such file.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AdapterError(f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise AdapterError(f"{path} is no peft configuration: it holds no JSON object")
        try:
            return cls(values)
        except AdapterError as error:
            raise AdapterError(f"{path}: {error}") from error

    @property
    def base_model(self) -> str | None:
        return self.values.get("base_model_name_or_path") or None

    def rank_of(self, layer: str) -> int:
        return int(_by_pattern(self.values.get("rank_pattern"), layer, self.rank))

    def alpha_of(self, layer: str) -> float:
        """The layer's alpha, such that its scale is alpha / rank also under use_rslora."""
        alpha = float(_by_pattern(self.values.get("alpha_pattern"), layer, self.alpha))
        return alpha * math.sqrt(self.rank_of(layer)) if self.use_rslora else alpha


def refuse_unsupported(values: Mapping[str, Any]) -> None:
    """Raise AdapterError that names the field and its value, where a field asks for more."""
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
        fields = ", ".join(f"{name}={values[name]!r}" for name in asked)
        raise AdapterError(
            f"unsupported in a noise hypernetwork: {fields}; only plain LoRA is read"
        )


def _by_pattern(patterns: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """peft's rule: the first pattern that matches the whole name or its end after a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default


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
