"""Families that are not in the registry, known only by what an adapter says about itself.

ComfyUI runs many distilled models, and its tables map the names of their layers. A hypernetwork
needs only a name and a last layer there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .family import Conditioning, Family, Generators


class Derived(Family):
    """A family that runs only in ComfyUI: there is no pipeline for it here.

    Args:
        name: what the adapter calls it.
        last_layer: diffusers' name of the layer that returns its LoRA branch alone.
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
