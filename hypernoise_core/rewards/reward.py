"""What a reward is: a frozen, differentiable scorer of images against prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..execution import checkpoint_block
from ..text import check_prompts
from .images import ImageBatch
from .weights import WeightFile, WeightStore

SMALLEST_SIDE = 16
"""In pixels: below it a score is a statement about the resize, not about the image."""
LARGEST_IMAGE = 1 << 26
"""In pixels, 8192 x 8192: above it a single image takes gigabytes on its way to the score."""
LARGEST_RATIO = 64
"""Of the sides: above it the resize to a network's size would make the image large again."""


@dataclass(frozen=True)
class NetworkSize:
    """Size of a reward's network in training; a CLIP counts without its text tower."""

    parameters: int
    activations: int
    """Numbers kept for the backward pass of one image, approximately."""


class Reward(nn.Module, ABC):
    """A scorer that owns its weights and its preprocessing; higher is better.

    To add one: a file with a subclass here, and a line in `reward_registry.CLASSES`.
    """

    name: ClassVar[str]
    """Its name in files, commands and nodes."""
    title: ClassVar[str]
    """Its name in messages and reports."""
    loss_offset: ClassVar[float] = 0.0
    """The loss in training is this minus the mean score, as in the reference's code."""
    embedded: ClassVar[bool] = False
    """Whether its weights are part of this repository."""
    files: ClassVar[tuple[WeightFile, ...]] = ()
    """What has to be downloaded."""
    size: ClassVar[NetworkSize | None] = None
    """For memory estimates, which say so where it is unknown (None)."""

    @classmethod
    @abstractmethod
    def load(cls, store: WeightStore) -> Reward:
        """Builds it from the weights in the store, frozen, on the CPU.

        Raises:
            FileNotFoundError: names the repository, the file and where it was looked for.
            TensorFileError: a file is damaged or is not what was published.
            ImportError: names the missing package and the command that installs it.
        """

    @classmethod
    def paths(cls, store: WeightStore) -> dict[str, Path]:
        """The files that `load` reads, by their names.

        Raises:
            FileNotFoundError, TensorFileError: as `load` raises them.
        """
        return {f"{file.repository}/{file.name}": store.find(file) for file in cls.files}

    @abstractmethod
    def score_batch(self, batch: ImageBatch, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) in float32, differentiable in the batch's images; inputs are checked."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores images (B, 3, H, W) in [0, 1] against B prompts: (B,), differentiable in images.

        Raises:
            ValueError: images and prompts do not fit each other, or an image cannot be scored.
        """
        check_batch(images, prompts)
        return self.score_batch(ImageBatch(images), prompts)

    def loss(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The paper's loss, a scalar: loss_offset minus the mean score."""
        return self.loss_offset - self.score(images, prompts).mean()

    def prompt_warnings(self, prompts: Sequence[str]) -> list[str]:
        """One sentence for each prompt that is longer than what the reward reads."""
        return []

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory."""
        for block in self.blocks():
            checkpoint_block(block)

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks that an image passes through."""
        return ()


def check_batch(images: Tensor, prompts: Sequence[str]) -> None:
    """Makes sure that images (B, 3, H, W) in [0, 1] can be scored against the prompts.

    Raises:
        ValueError: says what is wrong and with which image.
    """
    check_prompts(prompts)
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"a reward takes images (B, 3, H, W), B >= 1, not {tuple(images.shape)}")
    if len(images) != len(prompts):
        raise ValueError(f"got {len(prompts)} prompts for {len(images)} images; give one each")
    check_size(*images.shape[-2:])
    if not images.is_floating_point():
        raise ValueError(
            f"images must be floating-point numbers in [0, 1], not {images.dtype}: divide by 255"
        )
    with torch.no_grad():
        # Not flattened, which would copy images in channels-last layout.
        low, high = images.amin((1, 2, 3)), images.amax((1, 2, 3))
        bad = ~(torch.isfinite(low) & torch.isfinite(high) & (low > -0.01) & (high < 1.01))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"image {first} has values from {low[first]:.3g} to {high[first]:.3g}; all must be "
            f"numbers in [0, 1]"
        )


def check_size(height: int, width: int) -> None:
    """Check that an image of this size can be scored.

    Raises:
        ValueError: it cannot; states the limit.
    """
    image = f"an image of {width} x {height} pixels is too"
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(f"{image} small to be scored; each side must be at least {SMALLEST_SIDE}")
    if height * width > LARGEST_IMAGE:
        raise ValueError(
            f"{image} large to be scored; scale it down to {LARGEST_IMAGE >> 20} megapixels"
        )
    if max(height, width) > LARGEST_RATIO * min(height, width):
        raise ValueError(
            f"{image} long to be scored; no side may be over {LARGEST_RATIO} times the other"
        )
