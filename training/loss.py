"""The objective of arXiv 2508.09968: reward of the generated image against the size of f."""

from dataclasses import dataclass

from torch import Tensor

from ..hypernoise_core.hypernetwork import noise_penalty


@dataclass(frozen=True)
class LossTerms:
    """`total` (scalar, with gradient), `reward` (B,) and `penalty` (scalar), both detached."""

    total: Tensor
    reward: Tensor
    penalty: Tensor


def hypernoise_loss(delta: Tensor, reward: Tensor, penalty_weight: float) -> LossTerms:
    """penalty_weight x mean(f^2) - mean(reward), for f (B, C, H, W) and rewards (B,).

    The mean over elements stands for 1/2 ||f||^2 up to a factor, as in the reference's code.
    """
    penalty = noise_penalty(delta)
    total = penalty_weight * penalty - reward.mean()
    return LossTerms(total, reward.detach(), penalty.detach())
