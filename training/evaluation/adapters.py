"""The adapters of an evaluation, each loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ...hypernoise_core.adapter import (
    find_weights,
    load_adapter,
    load_generator_lora,
    open_adapter,
)
from ...hypernoise_core.file_identity import sha256_of
from ...hypernoise_core.generator_lora import GeneratorLora
from .method_table import FINETUNE, OURS, MethodInfo, MethodInputs, get_method
from .settings import EvaluationConfig

ABLATION = "ablation/"
"""Prefix of the method name in the ablation's jobs."""


@dataclass(frozen=True)
class Adapters:
    """What methods need from files, and digests of the files."""

    inputs: dict[str, list[MethodInputs]]
    """By need (`adapter`, `lora`) or method of the ablation; one for each run."""
    digests: dict[str, list[str]]

    @classmethod
    def load(cls, config: EvaluationConfig) -> Adapters:
        """Loads all files, on the CPU.

        Raises:
            AdapterError: a file is missing or is not the kind of adapter it is given as.
        """
        files = {"adapter": config.adapters, "lora": config.lora}
        inputs = {
            "adapter": [MethodInputs(hypernetwork=load_adapter(path)) for path in config.adapters],
            "lora": [MethodInputs(lora=load_generator_lora(path)) for path in config.lora],
        }
        for name, path in config.ablations.items():
            files[ABLATION + name], inputs[ABLATION + name] = (path,), [_load(path)]
        return cls(inputs, {name: list(map(_digest, paths)) for name, paths in files.items()})

    def info(self, method: str) -> MethodInfo:
        """Facts about a method; one of the ablation is treated as HyperNoise or as the fine-tune.

        Raises:
            ValueError: no method has that name.
        """
        if method not in self.inputs:
            return get_method(method)
        return get_method(OURS if self.get(method, 0).lora is None else FINETUNE)

    def runs(self, method: str) -> int:
        """How many adapters a method is run with, one after another; 1 if it needs none."""
        return len(self.inputs.get(_key(method), [None]))

    def get(self, method: str, run: int) -> MethodInputs:
        """What a method needs from files."""
        found = self.inputs.get(_key(method))
        return MethodInputs() if found is None else found[run]

    def digest(self, method: str, run: int) -> str | None:
        """Of the file that a method needs; None if it needs none."""
        found = self.digests.get(_key(method))
        return None if found is None else found[run]

    def to(self, device: torch.device) -> Adapters:
        """Moves all weights to a device; returns itself."""
        for inputs in self.inputs.values():
            for each in inputs:
                (each.lora or each.hypernetwork).to(device).requires_grad_(False)
        return self


def _load(path: Path) -> MethodInputs:
    """From a file of either kind."""
    loaded = open_adapter(path)
    is_lora = isinstance(loaded, GeneratorLora)
    return MethodInputs(lora=loaded) if is_lora else MethodInputs(hypernetwork=loaded)


def _key(method: str) -> str | None:
    return method if method.startswith(ABLATION) else get_method(method).needs


def _digest(path: Path) -> str:
    return sha256_of(find_weights(path))[:16]
