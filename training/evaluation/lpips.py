"""LPIPS (arXiv 1801.03924), a perceptual distance between images."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

VIEW = 64
"""Side in pixels of the copies that are compared."""


class Lpips:
    """LPIPS on AlexNet, whose weights must be in torch's cache (see `weights_file`)."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        self._metric = metric.to(device)

    @torch.no_grad()
    def diversity(self, views: Tensor, *, batch_size: int = 64) -> float | None:
        """Mean distance between two images of one prompt; 0 for copies, rarely above 1.

        Args:
            views: (S, N, 3, VIEW, VIEW) in [0, 1], of S images of each of N prompts.

        Returns:
            None for a single image of each prompt.
        """
        if len(views) < 2:
            return None
        self._metric.reset()
        for a, b in combinations(views.to(self._metric.device), 2):
            for part in zip(a.split(batch_size), b.split(batch_size), strict=True):
                self._metric.update(*part)
        return float(self._metric.compute())


def load_lpips(device: torch.device | str = "cpu") -> Lpips | None:
    """LPIPS, or None if AlexNet's weights are not in torch's cache; nothing is downloaded."""
    return Lpips(device) if weights_file().is_file() else None


def weights_file() -> Path:
    """Where torchvision looks for AlexNet's weights, and where it downloads them to."""
    from torchvision.models import AlexNet_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.DEFAULT.url).name


def views(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) at VIEW x VIEW pixels, by averaging."""
    return F.adaptive_avg_pool2d(images.float(), VIEW)
