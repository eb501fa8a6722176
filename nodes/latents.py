"""Picking single images out of LATENTs, together with their masks and other data."""

from collections.abc import Sequence
from typing import Any

import torch


def pick(latents: Sequence[dict[str, Any]], chosen: Sequence[int]) -> dict[str, Any]:
    """The chosen images as one LATENT, with what ComfyUI's LatentFromBatch keeps of each.

    If only some images have a noise mask, the others get a mask of ones, as in a sampler. Any other
    key is taken from the first chosen image that has it.

    Args:
        latents: samples (B, C, H, W) each.
        chosen: indices counted over all of them, at least one.

    Raises:
        ValueError: the chosen ones differ in size.
    """
    rows = [(latent, i) for latent in latents for i in range(len(latent["samples"]))]
    picked = [rows[number] for number in chosen]
    samples = [latent["samples"][i] for latent, i in picked]
    if len(sizes := {tuple(sample.shape) for sample in samples}) > 1:
        raise ValueError(
            f"the best latents differ in size ({' and '.join(map(str, sorted(sizes)))}). Use "
            f"latents of the same size"
        )
    kept: dict[str, Any] = {}
    for latent, _ in reversed(picked):
        kept.update(latent)
    kept["samples"] = torch.stack(samples)
    kept["batch_index"] = [_batch_index(latent, i) for latent, i in picked]
    if kept.get("noise_mask") is not None:
        kept["noise_mask"] = _stacked([_mask(latent, i) for latent, i in picked])
    return kept


def _batch_index(latent: dict[str, Any], i: int) -> int:
    """The index of an image in the batch that its noise was generated for."""
    return latent["batch_index"][i] if "batch_index" in latent else i


def _mask(latent: dict[str, Any], i: int) -> torch.Tensor | None:
    """The mask of an image, (1, H, W); masks are repeated if there are fewer than images."""
    masks = latent.get("noise_mask")
    return None if masks is None else masks[i % len(masks)].reshape(1, *masks.shape[-2:])


def _stacked(masks: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """(B, 1, H, W), all in the size of the largest; samplers resize them to the latent's size."""
    known = [mask for mask in masks if mask is not None]
    largest = max(known, key=torch.numel)
    masks = [torch.ones_like(largest) if mask is None else mask for mask in masks]
    size = largest.shape[-2:]
    return torch.cat([_resized(mask[None], size) for mask in masks])


def _resized(mask: torch.Tensor, size: torch.Size) -> torch.Tensor:
    if mask.shape[-2:] == size:
        return mask
    return torch.nn.functional.interpolate(mask, size=size, mode="bilinear")
