"""The adapters of an evaluation, each read once."""

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
from .catalogue import FINETUNE, OURS, Entry, Ingredients, get_entry
from .settings import EvaluationConfig

ABLATION = "ablation/"
"""What the names of the ablation's cells start with."""


@dataclass(frozen=True)
class Adapters:
    """What methods need from files, and digests of these."""

    ingredients: dict[str, list[Ingredients]]
    """Of `adapter`, `lora` and the methods of the ablation."""
    digests: dict[str, list[str]]

    @classmethod
    def load(cls, config: EvaluationConfig) -> Adapters:
        """Reads all files, on the CPU.

        Raises:
            AdapterError: a file is missing or is not what it is given for.
        """
        files = {"adapter": config.adapters, "lora": config.lora}
        ingredients = {
            "adapter": [Ingredients(hypernetwork=load_adapter(path)) for path in config.adapters],
            "lora": [Ingredients(lora=load_generator_lora(path)) for path in config.lora],
        }
        for name, path in config.ablations.items():
            files[ABLATION + name], ingredients[ABLATION + name] = (path,), [_load(path)]
        return cls(ingredients, {name: list(map(_digest, paths)) for name, paths in files.items()})

    def entry(self, method: str) -> Entry:
        """The facts of a method; one of the ablation is like HyperNoise or like the fine-tune.

        Raises:
            ValueError: there is none of that name.
        """
        if method not in self.ingredients:
            return get_entry(method)
        return get_entry(OURS if self.get(method, 0).lora is None else FINETUNE)

    def runs(self, method: str) -> int:
        """How many adapters a method is run with, one after another; 1 where it needs none."""
        return len(self.ingredients.get(_key(method), [None]))

    def get(self, method: str, run: int) -> Ingredients:
        """What a method needs from files."""
        found = self.ingredients.get(_key(method))
        return Ingredients() if found is None else found[run]

    def digest(self, method: str, run: int) -> str | None:
        """Of the file that a method needs; None where it needs none."""
        found = self.digests.get(_key(method))
        return None if found is None else found[run]

    def to(self, device: torch.device) -> Adapters:
        """The same, with all weights on a device."""
        for ingredients in self.ingredients.values():
            for each in ingredients:
                (each.lora or each.hypernetwork).to(device).requires_grad_(False)
        return self


def _load(path: Path) -> Ingredients:
    """Of a file of either kind."""
    loaded = open_adapter(path)
    is_lora = isinstance(loaded, GeneratorLora)
    return Ingredients(lora=loaded) if is_lora else Ingredients(hypernetwork=loaded)


def _key(method: str) -> str | None:
    return method if method.startswith(ABLATION) else get_entry(method).needs


def _digest(path: Path) -> str:
    return sha256_of(find_weights(path))[:16]
