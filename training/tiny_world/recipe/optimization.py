"""Optimization of the tiny world's models: Muon for matrices, AdamW for the rest, and EMA."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn

_EMA_DECAY = 0.998


class MuonAdamW:
    """Muon for hidden matrices, including 1x1 convolutions, and AdamW for all other parameters.

    One schedule for both: linear warm-up, then a cosine to 2% of the peak learning rate.
    """

    def __init__(
        self, modules: Iterable[nn.Module], *, steps: int, adamw_lr: float, muon_lr: float
    ) -> None:
        named = [(name, p) for module in modules for name, p in module.named_parameters()]
        self._matrices = [p for name, p in named if _is_hidden_matrix(name, p)]
        rest = [p for name, p in named if not _is_hidden_matrix(name, p)]
        # torch's Muon only takes 2-D parameters, so it gets 1x1 kernels as matrices.
        self._views = [nn.Parameter(p.detach().flatten(1)) for p in self._matrices]
        muon = torch.optim.Muon(
            self._views, lr=muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        self.parameters = [*self._matrices, *rest]
        self._optimizers = [muon, torch.optim.AdamW(rest, lr=adamw_lr, weight_decay=0.01)]
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, steps))
            for optimizer in self._optimizers
        ]

    def step(self, loss: torch.Tensor) -> None:
        """One update from a scalar loss: backward, clip, step, next learning rate."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for view, parameter in zip(self._views, self._matrices, strict=True):
            view.grad = parameter.grad.flatten(1)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
        for parameter in self.parameters:
            parameter.grad = None


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    inside = any(part in name for part in ("blocks.", "layers."))
    return inside and parameter.ndim >= 2 and parameter.flatten(1).shape[1] >= 32


def _schedule(step: int, steps: int) -> float:
    if step < (warmup := max(1, steps // 50)):
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


class Ema:
    """An exponential moving average of a module's weights, stored in `module`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._steps = 0

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        self._steps += 1
        weight = 1 - min(_EMA_DECAY, (1 + self._steps) / (10 + self._steps))
        for average, value in zip(self.module.parameters(), source.parameters(), strict=True):
            average.lerp_(value, weight)
