"""ReNO over a diffusers pipeline: the search for better noise of a batch of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..hypernoise_core.families import Conditioning, family_of_pipeline
from ..hypernoise_core.hypernetwork import (
    NoiseHypernetwork,
    draw_noise,
    modulate,
    predict_change,
    seed_generators,
)
from ..hypernoise_core.reno import RenoConfig, RenoResult, optimise_noise
from ..hypernoise_core.rewards import Ensemble


def search_noise(
    pipeline: Any,
    rewards: Ensemble,
    prompts: Sequence[str],
    conditioning: Conditioning,
    *,
    seeds: Sequence[int],
    size: tuple[int, int],
    config: RenoConfig,
    steps: int = 1,
    hypernetwork: NoiseHypernetwork | None = None,
    on_step: Callable[[int, Tensor, Tensor], None] = lambda step, images, scores: None,
) -> RenoResult:
    """The best that ReNO finds for each of B prompts, which run as one batch.

    Args:
        conditioning: the encoded prompts, first dimension B.
        seeds: of the noise that each image's search starts from, and of what the sampler draws
            between steps.
        size: height and width in pixels.
        steps: generator steps.
        hypernetwork: the search starts from its noise; None: from plain noise.
        on_step: as of `optimise_noise`.

    Raises:
        ValueError: the generator makes no images of that size, or a score is not a number.
    """
    family, device = family_of_pipeline(pipeline), pipeline._execution_device
    shape = family.latent_shape(pipeline, *size)
    conditioning = {name: tensor.to(device) for name, tensor in conditioning.items()}

    def start() -> tuple[Tensor, list[torch.Generator]]:
        """The seeds' noise, and generators from which the sampler draws what it draws for base."""
        generators = seed_generators(seeds)
        return draw_noise(shape, generators, device=device), generators

    def generate(x: Tensor) -> Tensor:
        return family.decode(pipeline, family.denoise(pipeline, x, conditioning, steps, start()[1]))

    noise, _ = start()
    if hypernetwork is not None:
        network = family.network(pipeline)
        with torch.no_grad():
            change = predict_change(hypernetwork, network, noise, conditioning)
            noise = modulate(noise, change.delta)
    return optimise_noise(
        noise, generate, lambda images: rewards.score(images, prompts), config, on_step
    )
