"""Optimizers, learning rates with warm-up, and the moving average (EMA) of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .config import TrainingConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainingConfig
) -> torch.optim.Optimizer:
    """The optimizer that the configuration names, with the reference's settings."""
    betas = (0.9, config.adam_beta2)
    match config.optim:
        case "sgd":
            return torch.optim.SGD(parameters, config.lr, momentum=0.9)
        case "adam":
            return torch.optim.Adam(parameters, config.lr, betas)
        case "adamw":
            return torch.optim.AdamW(parameters, config.lr, betas, weight_decay=config.weight_decay)
        case "lbfgs":
            return torch.optim.LBFGS(
                parameters, config.lr, max_iter=10, history_size=3, line_search_fn="strong_wolfe"
            )


def make_average(adapter: nn.Module, decay: float) -> AveragedModel | None:
    """The exponential moving average (EMA) of an adapter's weights; None for a decay of 0."""
    if not decay:
        return None
    return AveragedModel(adapter, multi_avg_fn=get_ema_multi_avg_fn(decay))


def share_done(step: int, steps: int, seconds: float, max_seconds: float | None) -> float:
    """Share of a run that is over, in updates or in seconds, whichever is more; above 1 beyond it.

    Args:
        step: updates done, of `steps`.
        seconds: since the start.
        max_seconds: after which the run ends; None: no limit.
    """
    return max(step / steps, seconds / max_seconds if max_seconds else 0.0)


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """The learning rate of an update.

    Args:
        step: updates done before it.
        progress: share of the run that is over, from 0 to 1.
    """
    warmup = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    decay = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }
    return config.lr * warmup * decay[config.schedule]
