"""A family whose best noise distribution is known in closed form or by quadrature.

Its generator is any function of the noise; its reward is a linear function of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hypernoise.hypernoise_core.families import Conditioning, Family
from hypernoise.hypernoise_core.rewards.images import ImageBatch
from hypernoise.hypernoise_core.rewards.reward import Reward

SIDE = 16
"""Of an image, in pixels: the least that rewards take."""


class ToyNetwork(nn.Module):
    """Two layers; some hidden features see the noise and some are constant, so that LoRA branches
    can make any smooth f of a few dimensions, a mere shift among them.

    Args:
        d: elements of one noise.
        hidden: hidden features.
    """

    def __init__(self, d: int, hidden: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(d, hidden)
        self.last = nn.Linear(hidden, d)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.first.weight.normal_(std=d**-0.5, generator=generator)
            self.first.weight[: hidden // 4] = 0
            self.first.bias.normal_(generator=generator)
        self.requires_grad_(False)

    def forward(self, noise: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.first(noise.flatten(1)))
        return self.last(hidden).view_as(noise)


class ToyPipeline:
    """A generator (B, C, H, W) -> images (B, 3, SIDE, SIDE), and the network that f is made of."""

    vae_scale_factor = SIDE

    def __init__(self, shape: Sequence[int], generator: Callable[[Tensor], Tensor]) -> None:
        self.shape, self.generator = tuple(shape), generator
        self.network = ToyNetwork(torch.Size(shape).numel())


class Toy(Family):
    """Conditioning: none. Latents are the noise itself, and the decoder is all of the generator."""

    name = "toy"
    title = "Toy"
    pipeline_class = "ToyPipeline"
    network_class = "ToyNetwork"
    network_attribute = "network"
    last_layer = "last"
    timestep = 1.0
    signature = "first$"
    text_tokens = 0

    def encode(self, pipeline: Any, prompts: Sequence[str], **overrides: Any) -> Conditioning:
        return {}

    def empty_conditioning(
        self, network: nn.Module, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> Conditioning:
        return {}

    def predict(self, network: nn.Module, noise: Tensor, conditioning: Conditioning) -> Tensor:
        return network(noise)

    def denoise(
        self,
        pipeline: Any,
        noise: Tensor,
        conditioning: Conditioning,
        steps: int = 1,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        return noise

    def decode(self, pipeline: Any, latents: Tensor) -> Tensor:
        return pipeline.generator(latents)

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, ...]:
        return pipeline.shape


class NoFeatures:
    """Prompts mean nothing here."""

    def rows(self, prompts: Sequence[str]) -> Conditioning:
        return {}


class LinearReward(Reward):
    """direction . image.

    Args:
        direction: (3, SIDE, SIDE).
    """

    name = "linear"
    title = "Linear"

    def __init__(self, direction: Tensor) -> None:
        super().__init__()
        self.register_buffer("direction", direction)

    @classmethod
    def load(cls, store: Any) -> LinearReward:
        raise NotImplementedError

    def score_batch(self, batch: ImageBatch, prompts: Sequence[str]) -> Tensor:
        return (batch.images * self.direction).sum((1, 2, 3))
