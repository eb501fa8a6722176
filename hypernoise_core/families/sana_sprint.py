"""SANA-Sprint: a TrigFlow generator of one or few steps, with an embedded guidance scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..text import expect_long_texts
from .family import Conditioning, Family, Generators, full_batch, network_dtype, stock_default

_MARGIN = 8  # tokens, for what the text before the prompt changes about its tokens


class SanaSprint(Family):
    """Conditioning: prompt_embeds (B, L, D), prompt_attention_mask (B, L), guidance (B,), the last
    already multiplied by the network's guidance_embeds_scale and absent without that input."""

    name = "sana_sprint"
    title = "SANA-Sprint"
    pipeline_class = "SanaSprintPipeline"
    network_class = "SanaTransformer2DModel"
    network_attribute = "transformer"
    last_layer = "proj_out"
    alpha_per_rank = 2
    text_tokens = 300
    timestep = 1.0  # s = sin t / (sin t + cos t) at t = pi/2
    signature = (
        r"(patch_embed|time_embed|caption_projection)\."
        r"|transformer_blocks\.\d+\.(attn1|attn2|ff\.conv_\w+$)"
    )

    def lora_keys(self, layer: str, for_comfyui: bool = False) -> tuple[str, str]:
        if not for_comfyui:
            return super().lora_keys(layer)
        # Not diffusers' layout: ComfyUI knows SANA's layers by the names of its own network alone.
        name = f"diffusion_model.{layer}"
        return f"{name}.lora_A.weight", f"{name}.lora_B.weight"

    def encode(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        *,
        guidance_scale: float | None = None,
        complex_human_instruction: list[str] | None | str = "stock",
        max_sequence_length: int | None = None,
        clean_caption: bool = False,
    ) -> Conditioning:
        """Conditioning of the prompts.

        Args:
            guidance_scale: None: the stock pipeline's (4.5).
            complex_human_instruction: lines put before each prompt; "stock": the stock pipeline's;
                None: nothing.
            max_sequence_length: tokens kept of a prompt; None: the stock pipeline's (300).

        Returns:
            L is the length of the longest prompt: padding behind all of them is cut off.
        """
        if complex_human_instruction == "stock":
            complex_human_instruction = stock_default(pipeline, "complex_human_instruction")
        if max_sequence_length is None:
            max_sequence_length = stock_default(pipeline, "max_sequence_length")

        expect_long_texts(pipeline.tokenizer)

        def encode(length: int) -> tuple[Tensor, Tensor]:
            return pipeline.encode_prompt(
                list(prompts),
                device=pipeline._execution_device,
                clean_caption=clean_caption,
                max_sequence_length=length,
                complex_human_instruction=complex_human_instruction,
            )

        with torch.no_grad():
            # Padding costs most of the time and changes nothing: no token sees what follows it.
            enough = min(max_sequence_length, _longest(pipeline.tokenizer, prompts) + _MARGIN)
            embeds, mask = encode(enough)
            used = int(mask.sum(1).max())  # the rest is padding, which the network would mask
            if used == enough < max_sequence_length:  # so some prompt may have been cut off
                embeds, mask = encode(max_sequence_length)
                used = int(mask.sum(1).max())
        conditioning = {
            "prompt_embeds": embeds[:, :used],
            "prompt_attention_mask": mask[:, :used],
        }
        config = pipeline.transformer.config
        if config.guidance_embeds:
            if guidance_scale is None:
                guidance_scale = stock_default(pipeline, "guidance_scale")
            guidance = full_batch(guidance_scale, embeds) * config.guidance_embeds_scale
            conditioning["guidance"] = guidance.to(embeds.dtype)
        return conditioning

    def empty_conditioning(
        self, network: nn.Module, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> Conditioning:
        length, config = self.text_tokens, network.config
        embeds = torch.empty(batch, length, config.caption_channels, dtype=dtype, device=device)
        mask = torch.empty(batch, length, dtype=torch.long, device=device)
        conditioning = {"prompt_embeds": embeds, "prompt_attention_mask": mask}
        if config.guidance_embeds:
            conditioning["guidance"] = torch.empty(batch, dtype=dtype, device=device)
        return conditioning

    def predict(self, network: nn.Module, noise: Tensor, conditioning: Conditioning) -> Tensor:
        return _call(network, noise, full_batch(self.timestep, noise), conditioning).to(noise.dtype)

    def denoise(
        self,
        pipeline: Any,
        noise: Tensor,
        conditioning: Conditioning,
        steps: int = 1,
        generators: Generators = None,
    ) -> Tensor:
        scheduler = pipeline.scheduler
        scheduler.set_timesteps(
            steps,
            device=noise.device,
            max_timesteps=stock_default(pipeline, "max_timesteps"),
            intermediate_timesteps=(
                stock_default(pipeline, "intermediate_timesteps") if steps == 2 else None
            ),
        )
        scheduler.set_begin_index(0)
        sigma_data = scheduler.config.sigma_data
        latents = noise.float() * sigma_data
        generators = None if generators is None else list(generators)
        for t in scheduler.timesteps[:-1]:
            velocity = _trigflow(pipeline.transformer, latents / sigma_data, t, conditioning)
            latents, denoised = scheduler.step(
                velocity * sigma_data, t, latents, generator=generators, return_dict=False
            )
        return denoised / sigma_data


def _longest(tokenizer: Any, prompts: Sequence[str]) -> int:
    """Tokens of the longest prompt, as the pipeline prepares it."""
    return max(map(len, tokenizer([prompt.lower().strip() for prompt in prompts]).input_ids))


def _trigflow(network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """TrigFlow's velocity at angle t from a network trained as flow matching at time s.

    Args:
        x: latents in units of sigma_data, (B, C, H, W).
        t: angle in [0, pi/2], a scalar.
    """
    s = torch.sin(t) / (torch.cos(t) + torch.sin(t))
    norm = torch.sqrt(s**2 + (1 - s) ** 2)
    flow_x = x * norm
    flow_v = _call(network, flow_x, s.expand(x.shape[0]), conditioning).float()
    return ((1 - 2 * s) * flow_x + (1 - 2 * s + 2 * s**2) * flow_v) / norm


def _call(network: nn.Module, x: Tensor, s: Tensor, conditioning: Conditioning) -> Tensor:
    dtype = network_dtype(network)
    guidance = conditioning.get("guidance")
    return network(
        x.to(dtype),
        encoder_hidden_states=conditioning["prompt_embeds"].to(dtype),
        encoder_attention_mask=conditioning["prompt_attention_mask"],
        timestep=s,
        guidance=None if guidance is None else guidance.to(dtype),
        return_dict=False,
    )[0]


SANA_SPRINT = SanaSprint()
