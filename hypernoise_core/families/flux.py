"""FLUX: rectified flow on latents packed 2x2; schnell in 1 to 4 steps, dev with guidance input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..text import expect_long_texts
from .family import Conditioning, Family, Generators, full_batch, network_dtype, stock_default


class Flux(Family):
    """Conditioning: prompt_embeds (B, L, D), pooled_prompt_embeds (B, D'), guidance (B,) where the
    network has that input (dev)."""

    name = "flux"
    title = "FLUX"
    pipeline_class = "FluxPipeline"
    network_class = "FluxTransformer2DModel"
    network_attribute = "transformer"
    last_layer = "proj_out"
    alpha_per_rank = 5
    text_tokens = 512
    timestep = 1.0  # the network multiplies by 1000
    signature = (
        r"(x_embedder|context_embedder)$|(time_text_embed|single_transformer_blocks|norm_out)\."
        r"|transformer_blocks\.\d+\.(attn|norm1|norm1_context|ff\.net|ff_context)\."
    )
    latent_multiple = 2  # the network sees patches of 2x2 latents

    def encode(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        *,
        guidance_scale: float | None = None,
        max_sequence_length: int | None = None,
    ) -> Conditioning:
        """Conditioning of the prompts.

        Args:
            guidance_scale: for networks with a guidance input; None: the stock pipeline's (3.5).
            max_sequence_length: L; None: the stock pipeline's (512).
        """
        if max_sequence_length is None:
            max_sequence_length = stock_default(pipeline, "max_sequence_length")
        expect_long_texts(pipeline.tokenizer, pipeline.tokenizer_2)
        with torch.no_grad():
            embeds, pooled, _ = pipeline.encode_prompt(
                list(prompts),
                device=pipeline._execution_device,
                max_sequence_length=max_sequence_length,
            )
        conditioning = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        if pipeline.transformer.config.guidance_embeds:
            if guidance_scale is None:
                guidance_scale = stock_default(pipeline, "guidance_scale")
            conditioning["guidance"] = full_batch(guidance_scale, embeds)
        return conditioning

    def empty_conditioning(
        self, network: nn.Module, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> Conditioning:
        config, of = network.config, {"dtype": dtype, "device": device}
        conditioning = {
            "prompt_embeds": torch.empty(batch, self.text_tokens, config.joint_attention_dim, **of),
            "pooled_prompt_embeds": torch.empty(batch, config.pooled_projection_dim, **of),
        }
        if config.guidance_embeds:
            conditioning["guidance"] = torch.empty(batch, **of)
        return conditioning

    def latent_channels(self, pipeline: Any) -> int:
        return pipeline.transformer.config.in_channels // 4

    def default_size(self, pipeline: Any) -> int:
        return pipeline.default_sample_size * pipeline.vae_scale_factor

    def predict(self, network: nn.Module, noise: Tensor, conditioning: Conditioning) -> Tensor:
        packed = pack_latents(noise)
        timestep = full_batch(self.timestep, noise)
        velocity = _call(network, packed, timestep, noise.shape[-2:], conditioning)
        return unpack_latents(velocity, *noise.shape[-2:]).to(noise.dtype)

    def denoise(
        self,
        pipeline: Any,
        noise: Tensor,
        conditioning: Conditioning,
        steps: int = 1,
        generators: Generators = None,
    ) -> Tensor:
        size = noise.shape[-2:]
        latents = pack_latents(noise.float())
        scheduler = pipeline.scheduler
        _set_timesteps(scheduler, steps, latents.shape[1], noise.device)
        for t in scheduler.timesteps:
            timestep = full_batch(t, noise) / 1000
            velocity = _call(pipeline.transformer, latents, timestep, size, conditioning)
            latents = scheduler.step(velocity.float(), t, latents, return_dict=False)[0]
        return unpack_latents(latents, *size)


def _set_timesteps(scheduler: Any, steps: int, tokens: int, device: torch.device) -> None:
    """The stock pipeline's schedule: sigmas 1 to 1/steps, shifted where the scheduler says so."""
    config = scheduler.config
    sigmas = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()
    own_sigmas = getattr(config, "use_flow_sigmas", False)
    arguments = {"num_inference_steps": steps} if own_sigmas else {"sigmas": sigmas}
    scheduler.set_timesteps(device=device, mu=_shift(config, tokens), **arguments)
    scheduler.set_begin_index(0)


def _shift(config: Mapping[str, Any], tokens: int) -> float:
    """Shift of the sigmas that grows linearly with the number of image tokens."""
    base_tokens, max_tokens = (
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
    )
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (top - base) / (max_tokens - base_tokens)
    return tokens * slope + base - slope * base_tokens


def _call(
    network: nn.Module,
    packed: Tensor,
    timestep: Tensor,
    size: Sequence[int],
    conditioning: Conditioning,
) -> Tensor:
    """The packed velocity, (B, HW/4, 4C)."""
    dtype = network_dtype(network)
    embeds = conditioning["prompt_embeds"]
    return network(
        hidden_states=packed.to(dtype),
        timestep=timestep.to(dtype),
        guidance=conditioning.get("guidance") if network.config.guidance_embeds else None,
        encoder_hidden_states=embeds.to(dtype),
        pooled_projections=conditioning["pooled_prompt_embeds"].to(dtype),
        txt_ids=torch.zeros(embeds.shape[1], 3, device=packed.device, dtype=dtype),
        img_ids=_image_ids(*size, packed.device, dtype),
        return_dict=False,
    )[0]


def _image_ids(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(0, row, column) of every 2x2 patch, (HW/4, 3)."""
    rows = torch.arange(height // 2, device=device, dtype=dtype)
    columns = torch.arange(width // 2, device=device, dtype=dtype)
    grid = torch.cartesian_prod(rows, columns)  # (HW/4, 2)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)


def pack_latents(latents: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW/4, 4C); a token's features are ordered (channel, row, column)."""
    b, c, h, w = latents.shape
    patches = latents.reshape(b, c, h // 2, 2, w // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpack_latents(packed: Tensor, height: int, width: int) -> Tensor:
    """(B, HW/4, 4C) -> (B, C, H, W), the inverse of `pack_latents`."""
    b, _, c = packed.shape
    patches = packed.reshape(b, height // 2, width // 2, c // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


FLUX = Flux()
