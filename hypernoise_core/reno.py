"""ReNO (arXiv 2406.04312): gradient ascent on a reward, over the initial noise of each image.

A noise hypernetwork learns once what this repeats for every image. It starts from any noise, also
from that of a hypernetwork.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .reno_config import RenoConfig

MOMENTUM = 0.9


@dataclass(frozen=True)
class RenoResult:
    """The best that was found for each image, not the last."""

    noise: Tensor
    """(B, C, H, W) float32."""
    images: Tensor
    """(B, 3, height, width) in [0, 1], made from that noise."""
    scores: Tensor
    """(B,), of these images."""
    history: Tensor
    """Scores at each iteration and after the last, (iterations + 1, B)."""


def optimise_noise(
    noise: Tensor,
    generate: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
    config: RenoConfig,
    on_step: Callable[[int, Tensor, Tensor], None] = lambda step, images, scores: None,
) -> RenoResult:
    """Searches the noise from which the generator's image scores highest; images do not mix.

    Args:
        noise: where the search starts, (B, C, H, W).
        generate: (B, C, H, W) -> images (B, 3, height, width) in [0, 1], differentiable.
        score: images -> scores (B,), differentiable.
        on_step: called with the number of iterations done so far, the images and their scores; what
            it raises ends the search.

    Raises:
        ValueError: a score is not a number.
    """
    x = noise.detach().float().clone().requires_grad_(True)
    optimizer = torch.optim.SGD([x], config.learning_rate, momentum=MOMENTUM, nesterov=True)
    best: tuple[Tensor, Tensor, Tensor] | None = None  # noise, images, scores
    history: list[Tensor] = []
    stale = 0
    for step in range(config.iterations + 1):
        last = step == config.iterations
        with torch.set_grad_enabled(not last):
            images = generate(x)
            scores = score(images)
        if not torch.isfinite(scores).all():
            raise ValueError(
                f"the reward gave {scores.tolist()} after {step} iterations: try a smaller "
                f"learning_rate, or float32 instead of float16"
            )
        history.append(scores.detach())
        found = (x.detach().clone(), images.detach(), scores.detach())
        rose = scores.detach() > best[2] if best else torch.ones_like(scores, dtype=torch.bool)
        best = tuple(_choose(rose, *pair) for pair in zip(found, best or found, strict=True))
        on_step(step, best[1], best[2])
        stale = 0 if rose.any() else stale + 1
        if last or (config.patience and stale >= config.patience):
            break
        loss = config.penalty_weight * norm_penalty(x).sum() - scores.sum()
        (gradient,) = torch.autograd.grad(loss, x)
        norms = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        factors = (config.max_grad_norm / norms).clamp(max=1)
        x.grad = gradient * factors.view(-1, 1, 1, 1)
        optimizer.step()
    return RenoResult(*best, torch.stack(history))


def norm_penalty(noise: Tensor) -> Tensor:
    """Negative log-density of the norm of each image's noise under N(0, 1), up to a constant: (B,).

    1/2 |z|^2 - (d - 1) log |z| (arXiv 2406.04312, equation 4), in float32 whatever the noise's
    dtype, since |z|^2 is beyond float16 for latents of common sizes.
    """
    norm = noise.float().flatten(1).norm(dim=1)
    return 0.5 * norm**2 - (noise[0].numel() - 1) * norm.log()


def _choose(new: Tensor, found: Tensor, best: Tensor) -> Tensor:
    """`found` for the images where `new` (B,) is true, else `best`."""
    return torch.where(new.view(-1, *(1,) * (found.ndim - 1)), found, best)
