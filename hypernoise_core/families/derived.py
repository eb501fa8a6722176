"""Families that are not in the registry, known only by what an adapter says about itself.

ComfyUI runs many distilled models, and its tables know where their layers lie. Name and last layer
are all that a hypernetwork needs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .family import Conditioning, Family, Generators


class Derived(Family):
    """A family that runs in ComfyUI alone: nothing here knows its pipeline.

    Args:
        name: what the adapter calls it.
        last_layer: the layer that gives its LoRA branch alone, by diffusers' name.
    """

    def __init__(self, name: str, last_layer: str) -> None:
        self.name = self.title = name
        self.last_layer = last_layer

    def has_layer(self, name: str) -> bool:
        """Any layer: the network decides."""
        return True

    def encode(self, pipeline: Any, prompts: Sequence[str], **overrides: Any) -> Conditioning:
        self._refuse()

    def empty_conditioning(
        self, network: nn.Module, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> Conditioning:
        self._refuse()

    def predict(self, network: nn.Module, noise: Tensor, conditioning: Conditioning) -> Tensor:
        self._refuse()

    def denoise(
        self,
        pipeline: Any,
        noise: Tensor,
        conditioning: Conditioning,
        steps: int = 1,
        generators: Generators = None,
    ) -> Tensor:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError(
            f"hypernoise has no pipeline for the family {self.name!r}; its adapters run in ComfyUI"
        )
