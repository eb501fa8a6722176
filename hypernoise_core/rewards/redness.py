"""Redness: the reward of the paper's experiment that anybody can check by eye."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .images import ImageBatch
from .reward import NetworkSize, Reward
from .weights import WeightStore


class Redness(Reward):
    """Mean of R - (G + B) / 2 over the image, from -1 to 1; the prompt plays no part."""

    name = "redness"
    title = "Redness"
    size = NetworkSize(parameters=0, activations=0)

    @classmethod
    def load(cls, store: WeightStore) -> Redness:
        return cls()

    def score_batch(self, batch: ImageBatch, prompts: Sequence[str]) -> Tensor:
        red, green, blue = batch.images.float().mean((2, 3)).unbind(1)
        return red - (green + blue) / 2
