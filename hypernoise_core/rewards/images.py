"""What rewards do to images before they look at them, each thing once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Bicubic resize of the short side to `size` pixels, centre crop, normalisation.

    The same arithmetic as torchvision's Resize, CenterCrop and Normalize on tensors, which the
    reference uses; the bicubic overshoot is not clipped.
    """

    size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, size, size) float32, differentiable."""
        height, width = images.shape[-2:]
        short = min(height, width)
        resized = (self.size * height // short, self.size * width // short)
        pixels = images.float()
        if resized != (height, width):
            pixels = F.interpolate(pixels, size=resized, mode="bicubic", antialias=True)
        top, left = (round((side - self.size) / 2) for side in resized)
        pixels = pixels[..., top : top + self.size, left : left + self.size]
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


class ImageBatch:
    """A batch of images and what was computed from it: rewards that need the same share it."""

    def __init__(self, images: Tensor) -> None:
        """`images` (B, 3, H, W) in [0, 1]."""
        self.images = images
        self._computed: dict[Any, Tensor] = {}

    def pixels(self, preprocess: Preprocess) -> Tensor:
        """The preprocessed images, (B, 3, size, size)."""
        return self._once(preprocess, lambda: preprocess(self.images))

    def features(self, encoder: nn.Module) -> Tensor:
        """What a CLIP's image encoder makes of them, unit vectors (B, D)."""
        return self._once(encoder, lambda: encoder.image_features(self.pixels(encoder.preprocess)))

    def _once(self, key: Any, compute: Callable[[], Tensor]) -> Tensor:
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]
