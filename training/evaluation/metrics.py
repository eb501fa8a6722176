"""How images are measured: means with confidence intervals, gains over base, diversity.

Images of one prompt are not independent, so intervals are bootstrapped over prompts: all images of
a prompt are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...hypernoise_core.rewards import Ensemble
from ...hypernoise_core.rewards.clip import ClipEncoder
from ...hypernoise_core.rewards.images import ImageBatch

SMALL = 16
"""Side in pixels of the downscaled copies that `pixel_diversity` compares."""

_RESAMPLES = 4000
_TAILS = (2.5, 97.5)  # percentiles that 95% lie between


@dataclass(frozen=True)
class Mean:
    """A mean and its 95% confidence interval, NaN if unknown."""

    value: float
    low: float
    high: float


def mean(
    values: Sequence[float], groups: Sequence[str], strata: Sequence[str] | None = None
) -> Mean:
    """The mean of values, or of the strata's means, with a percentile bootstrap over groups.

    Args:
        values: N numbers.
        groups: the group of each, such as its prompt.
        strata: the stratum of each, such as its category, the same for all of a group; None: one
            stratum.

    Raises:
        ValueError: there are no values, or not as many groups as values.
    """
    if not len(values) or len(values) != len(groups):
        raise ValueError(
            f"a mean needs at least one value and a group for each, got {len(values)} values and "
            f"{len(groups)} groups"
        )
    strata = [""] * len(values) if strata is None else strata
    sums: dict[str, dict[str, list[float]]] = {}
    for value, group, stratum in zip(values, groups, strata, strict=True):
        sums.setdefault(stratum, {}).setdefault(group, []).append(value)
    parts = [
        np.array([(sum(members), len(members)) for members in by_group.values()], dtype=float)
        for by_group in sums.values()
    ]  # of each stratum, sum and number of each group
    value = float(np.mean([part[:, 0].sum() / part[:, 1].sum() for part in parts]))
    if max(map(len, parts)) == 1 or not math.isfinite(value):
        return Mean(value, math.nan, math.nan)
    rng = np.random.default_rng(0)
    drawn = np.mean([_resampled_means(part, rng) for part in parts], axis=0)
    low, high = np.percentile(drawn, _TAILS)
    return Mean(value, float(low), float(high))


def _resampled_means(part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of a stratum's groups (G, 2) drawn with replacement, (_RESAMPLES,)."""
    chosen = rng.integers(len(part), size=(_RESAMPLES, len(part)))
    totals = part[chosen].sum(1)
    return totals[:, 0] / totals[:, 1]


def share_recovered(base: float, ours: float, best: float) -> float | None:
    """(ours - base) / (best - base); None if the best gains nothing."""
    return (ours - base) / (best - base) if best > base else None


def best_of_kl(candidates: int) -> float:
    """KL of the best of N draws from the draws' own distribution, log N - (N - 1) / N, in nats.

    Exact if no two draws have the same reward (arXiv 2401.01879 bounds the other cases).
    """
    return math.log(candidates) - (candidates - 1) / candidates


def image_encoder(rewards: Ensemble) -> ClipEncoder | None:
    """The CLIP of the first reward that has one."""
    return next((m for m in rewards.modules() if isinstance(m, ClipEncoder)), None)


@torch.no_grad()
def image_features(encoder: ClipEncoder, images: Tensor, *, batch_size: int = 16) -> Tensor:
    """Unit vectors (N, D) on the CPU of images (N, 3, H, W) in [0, 1]."""
    device = encoder.scale.device
    batches = images.split(batch_size)
    return torch.cat([ImageBatch(b.to(device)).features(encoder).cpu() for b in batches])


def small_copies(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) at SMALL x SMALL pixels, by averaging."""
    return F.adaptive_avg_pool2d(images.float(), SMALL)


def diversity(features: Tensor) -> float | None:
    """Mean cosine distance, in [0, 2], of two images of one prompt.

    In the features of the reward that is trained on, it falls whenever the reward rises, because
    the reward is the cosine of such a feature with the prompt's: see `pixel_diversity` as well.

    Args:
        features: unit vectors (S, N, D) of S images of each of N prompts.

    Returns:
        None for a single image of each prompt.
    """
    return _mean_over_pairs(features, lambda a, b: 1 - (a * b).sum(-1))


def pixel_diversity(copies: Tensor) -> float | None:
    """Mean root-mean-square distance, in [0, 1], of two images of one prompt.

    Args:
        copies: small copies (S, N, 3, SMALL, SMALL) in [0, 1] of S images of each of N prompts.

    Returns:
        None for a single image of each prompt.
    """
    return _mean_over_pairs(copies, lambda a, b: (a - b).square().flatten(1).mean(1).sqrt())


def _mean_over_pairs(images: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> float | None:
    if len(images) < 2:
        return None
    pairs = combinations(images.float(), 2)
    return float(torch.stack([distance(a, b).mean() for a, b in pairs]).mean())
