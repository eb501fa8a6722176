"""Two ways of making images, compared pair by pair on the same prompts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Z_95 = 1.959964
"""Half the width of the interval that holds 95% of a normal distribution, in deviations."""


@dataclass(frozen=True)
class Comparison:
    """How often the second of a pair scores higher."""

    pairs: int
    win_rate: float
    """Share of pairs that the second wins; a tie counts half."""
    low: float
    """Lower end of the 95% confidence interval of the win rate."""
    high: float
    mean_difference: float
    """Mean of second minus first."""


def compare(first: Tensor, second: Tensor) -> Comparison:
    """Compares scores (N,) of the first and the second images of N pairs.

    The interval is Wilson's (J. Am. Stat. Assoc. 22, 1927), which holds for few pairs too.

    Raises:
        ValueError: there is no pair, or the numbers differ.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"a comparison takes pairs of images, got {first.numel()} and {second.numel()}"
        )
    n = len(first)
    rate = ((second > first).float() + 0.5 * (second == first).float()).mean().item()
    centre = (rate + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * (rate * (1 - rate) / n + Z_95**2 / (4 * n**2)) ** 0.5
    difference = (second - first).mean().item()
    return Comparison(n, rate, max(0.0, centre - half), min(1.0, centre + half), difference)
