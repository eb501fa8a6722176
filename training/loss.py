"""The objective of arXiv 2508.09968: reward of the generated image against the size of f."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..hypernoise_core.hypernetwork import noise_penalty
from ..hypernoise_core.reno import norm_penalty


def regulariser(output: Tensor, modulated: Tensor, kind: Literal["l2", "kl"]) -> Tensor:
    """What keeps the modulated noise near N(0, 1), for each image: (B,).

    l2 is the mean of f^2 over the elements, which is the paper's 1/2 |f|^2 up to a factor;
    kl is the negative log-density of the modulated noise's norm. Both as in the reference's code.

    Args:
        output: f(x0, c), (B, C, H, W).
        modulated: the noise that the generator runs on, (B, C, H, W).
    """
    return noise_penalty(output) if kind == "l2" else norm_penalty(modulated)
