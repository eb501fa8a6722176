"""The method: a noise hypernetwork f, and the noise it modulates (arXiv 2508.09968).

f is the frozen generator's own network with LoRA branches on it, whose last layer gives its branch
alone, so f = 0 while the branches are zero. The generator then runs on x0 + f(x0, c).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .errors import AdapterError
from .families import Conditioning, Family, get_family
from .lora import attach, own_targets
from .lora_adapter import LoraAdapter, initial_branches
from .lora_branch import LoraBranch, LoraTarget
from .metadata import AdapterMetadata
from .seeds import check_seeds


class NoiseChange(NamedTuple):
    """What f says about noise x0; both tensors are (B, C, H, W) in the noise's dtype."""

    output: Tensor
    """f(x0, c)."""
    delta: Tensor
    """What is added to x0: strength * f(x0, c), or strength * (f(x0, c) - x0) for an f that
    replaces the noise."""


class NoiseHypernetwork(LoraAdapter):
    """The LoRA weights of f; the frozen network they act on is an argument of each call.

    Args:
        branches: by the name of the layer in the family's diffusers network.
        metadata: `family` and `last_layer` are used; `dataclasses.replace` it to note the training.

    Raises:
        AdapterError: the last layer has no branch, so f is not defined.
    """

    kind = "noise hypernetwork"

    def __init__(self, branches: Mapping[str, LoraBranch], metadata: AdapterMetadata) -> None:
        super().__init__(branches, metadata)
        if self.last_layer not in branches:
            raise AdapterError(
                f"the adapter has no weights for the last layer {self.last_layer!r} of "
                f"{self.family.name}, so it is an ordinary LoRA, not a noise hypernetwork"
            )

    @classmethod
    def initialise(
        cls,
        network: nn.Module,
        family: Family | str,
        *,
        rank: int,
        alpha: float,
        adapt_depthwise: bool = False,
        last_layer: str | None = None,
        replaces_noise: bool = False,
        generator: torch.Generator | None = None,
        base_model: str | None = None,
    ) -> NoiseHypernetwork:
        """A new f on every Linear and Conv2d of the network, in float32 on the CPU; f = 0.

        A is Gaussian with deviation 1 / rank (peft's "gaussian"), B is zero.

        Args:
            network: the frozen network of a diffusers pipeline.
            adapt_depthwise: also adapt grouped convolutions, as the released SANA-Sprint adapters
                do (dense factors, which peft >= 0.16 cannot open).
            last_layer: the layer that returns its branch alone; None: the family's.
            replaces_noise: f takes the noise's place instead of being added to it.
            generator: a CPU generator for A.
            base_model: repository or folder of the generator, for the metadata.

        Raises:
            AdapterError: the network is not of the family.
        """
        family = get_family(family) if isinstance(family, str) else family
        metadata = AdapterMetadata(
            family=family.name,
            rank=rank,
            alpha=float(alpha),
            last_layer=last_layer or family.last_layer,
            base_model=base_model,
            replaces_noise=replaces_noise,
        )
        branches = initial_branches(network, family, rank, alpha, adapt_depthwise, generator)
        return cls(branches, metadata)

    @property
    def last_layer(self) -> str:
        return self.metadata.last_layer

    def attached(
        self, network: nn.Module, targets: Mapping[str, LoraTarget] | None = None
    ) -> AbstractContextManager[set[str]]:
        """A context in which calls of the network compute f; see `lora.attach`.

        Args:
            targets: where each layer lands; None: the network has diffusers' own names.

        Raises:
            AdapterError: a branch does not fit.
        """
        self.check_fits(network, targets)
        targets = own_targets(self.layer_names) if targets is None else targets
        return attach(network, self.branches, targets, self.last_layer)

    @property
    def has_kl(self) -> bool:
        """Whether the KL estimates of divergence.py apply to f.

        They do not where f replaces the noise: x0 + delta then keeps nothing of x0.
        """
        return not self.metadata.replaces_noise

    def change(self, output: Tensor, noise: Tensor, strength: float = 1.0) -> NoiseChange:
        """What an output of f means for the noise x0, both (B, C, H, W)."""
        delta = output - noise if self.metadata.replaces_noise else output
        return NoiseChange(output, delta if strength == 1 else strength * delta)

    def forward(self, network: nn.Module, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """f(x0, c) at strength 1.

        Args:
            network: the family's diffusers network.
            noise: x0 ~ N(0, 1), (B, C, H, W).
            conditioning: from `Family.encode` for B prompts.

        Returns:
            (B, C, H, W) in the noise's dtype.
        """
        with self.attached(network):
            return self.family.predict(network, noise, conditioning)


def seed_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each image.

    Raises:
        ValueError: a seed is out of range.
    """
    check_seeds(seeds)
    return [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]


def draw_noise(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x0 ~ N(0, 1), one image from each generator, drawn on the CPU in float32.

    Args:
        shape: of one image's latent, (C, H, W).

    Returns:
        (B, C, H, W) for B generators, the values diffusers' pipelines draw from the same ones.
    """
    images = [torch.randn(1, *shape, generator=generator) for generator in generators]
    return torch.cat(images).to(device=device, dtype=dtype)


def sample_noise(
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x0 ~ N(0, 1), one seed for each image, so that an image does not depend on its batch.

    Args:
        shape: of one image's latent, (C, H, W), see `Family.latent_shape`.

    Returns:
        (B, C, H, W) for B seeds.
    """
    return draw_noise(shape, seed_generators(seeds), device=device, dtype=dtype)


def predict_change(
    hypernetwork: NoiseHypernetwork,
    network: nn.Module,
    noise: Tensor,
    conditioning: Conditioning,
    strength: float = 1.0,
) -> NoiseChange:
    """f(x0, c), and what is added to the noise at a strength.

    Args:
        network: the family's diffusers network.
        noise: x0 ~ N(0, 1), (B, C, H, W).
        conditioning: from `Family.encode` for B prompts.
        strength: 0 runs no pass and gives zeros.
    """
    if strength == 0:
        return NoiseChange(torch.zeros_like(noise), torch.zeros_like(noise))
    return hypernetwork.change(hypernetwork(network, noise, conditioning), noise, strength)


def modulate(noise: Tensor, delta: Tensor) -> Tensor:
    """x0 + delta, the noise that the generator runs on; (B, C, H, W)."""
    return noise + delta


def noise_penalty(output: Tensor) -> Tensor:
    """Mean of f^2 over each image's elements, (B,): the L2 form of the paper's bound on the KL."""
    return output.square().flatten(1).mean(1)
