"""What a reward is: a frozen, differentiable scorer of images against prompts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn


class Reward(nn.Module, ABC):
    """A scorer that owns its weights and its preprocessing; higher is better."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path | None = None) -> "Reward":
        """Loads the weights; without a folder from where they are by default.

        Raises:
            FileNotFoundError: names the path that was expected.
            ImportError: names the missing package and the command that installs it.
        """

    @abstractmethod
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores images (B, 3, H, W) in [0, 1] against B prompts: (B,), differentiable in images.

        Raises:
            ValueError: images and prompts do not fit each other.
        """


def check_batch(images: Tensor, prompts: Sequence[str]) -> None:
    """Raises ValueError unless images are (B, 3, H, W) with B prompts, B at least 1."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"a reward takes images (B, 3, H, W), B >= 1, not {tuple(images.shape)}")
    if len(images) != len(prompts):
        raise ValueError(f"got {len(prompts)} prompts for {len(images)} images; give one each")
