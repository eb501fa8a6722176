"""A LoRA branch, and the place on a network where it belongs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LoraTarget:
    """Where a named layer of an adapter is on a network.

    Networks that fuse layers (q, k, v in one Linear) take several adapter layers on one module,
    each on its own slice of the output features.
    """

    module: str
    """Path of the module in the network."""
    offset: int = 0
    """First output feature of the slice."""
    size: int | None = None
    """Number of output features of the slice; None: all from `offset` on."""
    swap_halves: bool = False
    """The module holds the two halves of these features the other way round (scale and shift)."""

    def placed(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The adapter's features, along `dim`, in the module's order."""
        if not self.swap_halves:
            return tensor
        first, second = tensor.chunk(2, dim)
        return torch.cat([second, first], dim)


class LoraBranch(nn.Module):
    """One LoRA branch, up(down(x)) * alpha / rank, added to a Linear or a Conv2d.

    For a Conv2d the first factor takes the layer's kernel, stride, padding and dilation. It is
    dense even where the layer's convolution is grouped; the second factor is dense too (peft
    < 0.16, the released adapters) or has the layer's groups (peft >= 0.16), as its shape shows.
    The padding is with zeros whatever the layer's own mode, as peft's is.

    Args:
        down: the factor A, (r, i), or (r, i, kh, kw) for a Conv2d.
        up: the factor B, (o, r), or (o, r, 1, 1), or grouped (o, r / groups, 1, 1).
        alpha: numerator of the scale.
    """

    def __init__(self, down: Tensor, up: Tensor, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.alpha = float(alpha)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, features: Tensor, layer: nn.Module) -> Tensor:
        """The branch's output for the input of `layer`, in the input's dtype and on its device."""
        hidden, up = self.factors(features, layer)
        up = up * self.scale
        if up.ndim == 2:
            return F.linear(hidden, up)
        return F.conv2d(hidden, up, groups=self.rank // up.shape[1])

    def factors(self, features: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """A x, (..., r) or (B, r, H, W), and B, both in the input's dtype and on its device."""
        down = self.down.to(device=features.device, dtype=features.dtype)
        up = self.up.to(device=features.device, dtype=features.dtype)
        if down.ndim == 2:
            return F.linear(features, down), up
        return F.conv2d(features, down, None, layer.stride, layer.padding, layer.dilation), up


class Placement(NamedTuple):
    """A branch and its target."""

    target: LoraTarget
    branch: LoraBranch
