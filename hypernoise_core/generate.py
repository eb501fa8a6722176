"""Images from prompts with a stock diffusers pipeline, with or without a noise hypernetwork."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import AdapterError
from .execution import turn_of
from .families import Conditioning, Family, family_of_pipeline
from .hypernetwork import (
    NoiseHypernetwork,
    draw_noise,
    modulate,
    predict_change,
    seed_generators,
)
from .text import check_prompts


@dataclass(frozen=True)
class Generated:
    """The result of `generate`, on the CPU in float32, but for the conditioning's own dtypes."""

    images: Tensor
    """(B, 3, height, width) in [0, 1]."""
    noise: Tensor
    """x0 before modulation, (B, C, H, W)."""
    output: Tensor | None
    """f(x0, c), (B, C, H, W); None without a hypernetwork, zeros at strength 0."""
    delta: Tensor | None
    """What was added to x0, (B, C, H, W); see `NoiseChange`."""
    latents: Tensor
    """Input of the decoder, (B, C, H, W)."""
    conditioning: Conditioning
    """The encoded prompts; pass it to another call for the same prompts to skip the encoding."""


def encode_prompts(
    pipeline: Any, prompts: Sequence[str], *, batch_size: int = 8, **overrides: Any
) -> Conditioning:
    """Conditioning of the prompts on the CPU; a prompt that occurs several times is encoded once.

    Args:
        overrides: what the family's `encode` takes, such as guidance_scale.

    Returns:
        Tensors with one row for each of `prompts`.

    Raises:
        ValueError: there is no prompt, or one is not a string.
    """
    check_prompts(prompts)
    if not prompts:
        raise ValueError("no prompts: give at least one")
    family = family_of_pipeline(pipeline)
    unique = list(dict.fromkeys(prompts))
    with turn_of(family.network(pipeline)):
        parts = [
            family.encode(pipeline, unique[rows], **overrides)
            for rows in _slices(len(unique), batch_size)
        ]
    places = {prompt: i for i, prompt in enumerate(unique)}
    rows = torch.tensor([places[prompt] for prompt in prompts])
    return {name: join_batches([part[name].cpu() for part in parts])[rows] for name in parts[0]}


def join_batches(parts: list[Tensor]) -> Tensor:
    """Concatenate batches; where prompts differ in length (dimension 1), pad with 0."""
    if parts[0].ndim > 1:
        longest = max(part.shape[1] for part in parts)
        parts = [
            F.pad(part, (0, 0) * (part.ndim - 2) + (0, longest - part.shape[1])) for part in parts
        ]
    return torch.cat(parts)


@torch.inference_mode()
def generate(
    pipeline: Any,
    prompts: Sequence[str],
    hypernetwork: NoiseHypernetwork | None = None,
    *,
    seeds: Sequence[int],
    steps: int = 1,
    height: int | None = None,
    width: int | None = None,
    strength: float = 1.0,
    batch_size: int = 8,
    conditioning: Conditioning | None = None,
    noise: Tensor | None = None,
    noise_conditioning: Conditioning | None = None,
) -> Generated:
    """One image for each prompt and seed; an image depends on neither its batch nor the batch size.

    Threads may share a pipeline: its scheduler and its network are one thread's at a time.

    Args:
        pipeline: a SanaSprintPipeline, FluxPipeline or StableDiffusionPipeline.
        prompts: B prompts, repeated for several images of one prompt.
        hypernetwork: modulates the noise; None: the frozen generator alone. Put it on the
            pipeline's device first, or its weights are moved at each call.
        seeds: B seeds, of the noise and of what the sampler draws between its steps.
        steps: calls of the generator's network.
        height, width: pixels; None: the generator's own size.
        strength: factor on f; 0 runs the generator alone.
        batch_size: images computed at a time.
        conditioning: of these prompts, from an earlier run or `encode_prompts`; None: encode now.
        noise: (B, C, H, W) instead of the seeds' own.
        noise_conditioning: given to the hypernetwork instead of the prompts' own, B rows, or one
            for all images; the generator still gets the prompts.

    Raises:
        ValueError: sizes or counts that do not go together.
        AdapterError: the hypernetwork does not fit the pipeline.
    """
    family = family_of_pipeline(pipeline)
    _check_hypernetwork(family, pipeline, hypernetwork)
    shape = family.latent_shape(
        pipeline,
        family.default_size(pipeline) if height is None else height,
        family.default_size(pipeline) if width is None else width,
    )
    _check_counts(prompts, seeds, steps, batch_size, shape, noise, conditioning)
    if conditioning is None:
        conditioning = encode_prompts(pipeline, prompts, batch_size=batch_size)
    told = conditioning
    if noise_conditioning is not None:
        told = _repeated(noise_conditioning, len(prompts))
    generators = seed_generators(seeds)
    # Drawn even where noise is given: what the sampler draws later is the same either way.
    drawn = draw_noise(shape, generators)
    noise = drawn if noise is None else noise.to("cpu", torch.float32)

    device = pipeline._execution_device  # not `device`: that is the CPU where parts are offloaded
    network = family.network(pipeline)
    outputs, deltas, latents, images = [], [], [], []
    for rows in _slices(len(prompts), batch_size):
        x0 = noise[rows].to(device)
        c = {name: tensor[rows].to(device) for name, tensor in conditioning.items()}
        with turn_of(network):
            if hypernetwork is not None:
                c_noise = {name: tensor[rows].to(device) for name, tensor in told.items()}
                change = predict_change(hypernetwork, network, x0, c_noise, strength)
                x0 = modulate(x0, change.delta)
                outputs.append(change.output.cpu())
                deltas.append(change.delta.cpu())
            latents.append(family.denoise(pipeline, x0, c, steps, generators[rows]))
            images.append(family.decode(pipeline, latents[-1]).cpu())
        latents[-1] = latents[-1].cpu()
    return Generated(
        images=torch.cat(images),
        noise=noise,
        output=torch.cat(outputs) if outputs else None,
        delta=torch.cat(deltas) if deltas else None,
        latents=torch.cat(latents),
        conditioning=conditioning,
    )


def _slices(count: int, batch_size: int) -> Iterator[slice]:
    return (slice(start, start + batch_size) for start in range(0, count, batch_size))


def _repeated(conditioning: Conditioning, count: int) -> Conditioning:
    """With as many rows as there are images.

    Raises:
        ValueError: it has neither one row nor as many.
    """
    for name, tensor in conditioning.items():
        if tensor.shape[0] not in (1, count):
            raise ValueError(
                f"noise_conditioning has {tensor.shape[0]} rows of {name} for {count} prompts; "
                f"give one row for each, or one for all"
            )
    return {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in conditioning.items()}


def _check_hypernetwork(
    family: Family, pipeline: Any, hypernetwork: NoiseHypernetwork | None
) -> None:
    if hypernetwork is None:
        return
    if hypernetwork.family is not family:
        raise AdapterError(
            f"the adapter is for {hypernetwork.family.name}, the pipeline is a "
            f"{type(pipeline).__name__} ({family.name}): load {hypernetwork.family.pipeline_class}"
        )
    hypernetwork.check_fits(family.network(pipeline))


def _check_counts(
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    batch_size: int,
    shape: tuple[int, int, int],
    noise: Tensor | None,
    conditioning: Conditioning | None,
) -> None:
    check_prompts(prompts)
    if not prompts or len(prompts) != len(seeds):
        raise ValueError(
            f"give one seed for each image, and at least one image: got {len(prompts)} prompts and "
            f"{len(seeds)} seeds; repeat a prompt to make several images of it"
        )
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    if noise is not None and tuple(noise.shape) != (len(prompts), *shape):
        raise ValueError(
            f"the noise has the shape {tuple(noise.shape)}; {len(prompts)} images of this size "
            f"need {(len(prompts), *shape)}"
        )
    for name, tensor in (conditioning or {}).items():
        if tensor.shape[0] != len(prompts):
            raise ValueError(
                f"conditioning has {tensor.shape[0]} rows of {name} for {len(prompts)} prompts"
            )
