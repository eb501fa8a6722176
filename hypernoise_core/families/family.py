"""The interface of a family of few-step generators: facts, and how to call its network."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Conditioning = dict[str, Tensor]
"""What a prompt becomes: tensors by name, the first dimension is the batch."""

Generators = Sequence[torch.Generator] | None
"""One generator for each image, or None for torch's global one."""


class Family(ABC):
    """One family. Pipelines and networks are diffusers objects; nothing here imports diffusers.

    Letters: B batch, C latent channels, H and W latent height and width, L tokens, D features.
    """

    name: ClassVar[str]
    """Its name in files and commands."""
    title: ClassVar[str]
    """Its name in messages and reports."""
    pipeline_class: ClassVar[str]
    """Class name of the diffusers pipeline."""
    network_class: ClassVar[str]
    """Class name of the diffusers network."""
    network_attribute: ClassVar[str]
    """Where the pipeline keeps the network."""
    last_layer: ClassVar[str]
    """The layer that returns its LoRA branch alone."""
    alpha_per_rank: ClassVar[int]
    """LoRA alpha / rank in the reference's training."""
    timestep: ClassVar[float]
    """Timestep of the hypernetwork's pass: full noise."""
    signature: ClassVar[str]
    """Pattern of the names of its Linear and Conv2d layers, all but names that families share."""
    text_tokens: ClassVar[int]
    """L at most: tokens that the stock pipeline reads of a prompt."""
    latent_multiple: ClassVar[int] = 1
    """Latent height and width are multiples of this."""

    @abstractmethod
    def encode(self, pipeline: Any, prompts: Sequence[str], **overrides: Any) -> Conditioning:
        """Conditioning of the prompts as the stock pipeline makes it, without gradient."""

    @abstractmethod
    def empty_conditioning(
        self, network: nn.Module, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> Conditioning:
        """Conditioning of prompts with `text_tokens` tokens, its values left open."""

    @abstractmethod
    def predict(self, network: nn.Module, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's raw output at full noise.

        Args:
            noise: x0 ~ N(0, 1), (B, C, H, W).

        Returns:
            (B, C, H, W) in the noise's dtype.
        """

    @abstractmethod
    def denoise(
        self,
        pipeline: Any,
        noise: Tensor,
        conditioning: Conditioning,
        steps: int = 1,
        generators: Generators = None,
    ) -> Tensor:
        """The generator: latents from noise as the stock pipeline makes them, differentiable.

        Args:
            noise: x0 ~ N(0, 1), (B, C, H, W).
            steps: calls of the network.
            generators: for families that draw noise again between the steps.

        Returns:
            (B, C, H, W) float32, as the VAE's decoder takes them before its scaling.
        """

    def __deepcopy__(self, memo: dict) -> Family:
        """Itself: a copy of an adapter is of the same family."""
        return self

    def has_layer(self, name: str) -> bool:
        """Whether the family's network can have an adapted layer of that name."""
        return name == self.last_layer or re.match(self.signature, name) is not None

    def lora_keys(self, layer: str, for_comfyui: bool = False) -> tuple[str, str]:
        """Keys of A and B of a layer in the file of a LoRA on the generator.

        diffusers and ComfyUI both read them, except in families whose layers have no name common to
        both.

        Args:
            for_comfyui: in such a family, the keys for ComfyUI instead of those for diffusers.
        """
        name = f"{self.network_attribute}.{layer}"
        return f"{name}.lora_A.weight", f"{name}.lora_B.weight"

    def plain_lora_key(self, key: str) -> str:
        """A key of `lora_keys` in the form that `module_names.parse_weights` reads."""
        return key

    def network(self, pipeline: Any) -> nn.Module:
        return getattr(pipeline, self.network_attribute)

    def image_multiple(self, pipeline: Any) -> int:
        """Image height and width are multiples of this."""
        return pipeline.vae_scale_factor * self.latent_multiple

    def default_size(self, pipeline: Any) -> int:
        """Height and width in pixels where the caller names none, the stock pipeline's choice."""
        return self.network(pipeline).config.sample_size * pipeline.vae_scale_factor

    def latent_channels(self, pipeline: Any) -> int:
        return self.network(pipeline).config.in_channels

    def latent_shape(self, pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of an image of height x width pixels.

        Raises:
            ValueError: the generator makes no image of that size.
        """
        multiple = self.image_multiple(pipeline)
        if height < multiple or width < multiple or height % multiple or width % multiple:
            h, w = (max(multiple, round(side / multiple) * multiple) for side in (height, width))
            raise ValueError(
                f"{self.title} makes images whose height and width are multiples of {multiple}, "
                f"got height {height} and width {width}: use height {h} and width {w}"
            )
        factor = pipeline.vae_scale_factor
        return self.latent_channels(pipeline), height // factor, width // factor

    def decode(self, pipeline: Any, latents: Tensor) -> Tensor:
        """Images (B, 3, height, width) float32 in [0, 1] from latents; differentiable."""
        vae = pipeline.vae
        scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", 0) or 0)
        images = vae.decode(scaled.to(dtype=vae.dtype), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)


def stock_default(pipeline: Any, argument: str) -> Any:
    """The default of an argument of the stock pipeline's call."""
    return inspect.signature(type(pipeline).__call__).parameters[argument].default


def full_batch(value: float, like: Tensor) -> Tensor:
    """(B,) float32 of one value, on the device of a (B, ...) tensor."""
    return torch.full((like.shape[0],), float(value), device=like.device, dtype=torch.float32)


def network_dtype(network: nn.Module) -> torch.dtype:
    """The dtype a network wants its inputs in."""
    dtype = getattr(network, "dtype", None)
    return dtype if dtype is not None else next(network.parameters()).dtype
