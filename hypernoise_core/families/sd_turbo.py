"""SD-Turbo: Stable Diffusion 2.1 distilled to one to four steps, without guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..text import expect_long_texts
from .family import Conditioning, Family, Generators, full_batch, network_dtype


class SdTurbo(Family):
    """Conditioning: prompt_embeds (B, L, D)."""

    name = "sd_turbo"
    title = "SD-Turbo"
    pipeline_class = "StableDiffusionPipeline"
    network_class = "UNet2DConditionModel"
    network_attribute = "unet"
    last_layer = "conv_out"
    alpha_per_rank = 1
    text_tokens = 77
    timestep = 999.0
    signature = r"(conv_in|conv_out)$|(time_embedding|down_blocks|mid_block|up_blocks)\."

    def lora_keys(self, layer: str, for_comfyui: bool = False) -> tuple[str, str]:
        # Of diffusers' old names, those that ComfyUI still knows: attention's differ from the rest.
        if ".to_" in layer:
            layer = layer.removesuffix(".0").replace(".to_", ".processor.to_") + "_lora"
        else:
            layer += ".lora"
        return f"unet.{layer}.down.weight", f"unet.{layer}.up.weight"

    def plain_lora_key(self, key: str) -> str:
        if ".processor." in key:
            key = key.replace(".processor.", ".").replace(".to_out_lora.", ".to_out.0_lora.")
        return key.replace("_lora.", ".lora.")

    def encode(self, pipeline: Any, prompts: Sequence[str]) -> Conditioning:
        expect_long_texts(pipeline.tokenizer)
        with torch.no_grad():
            embeds, _ = pipeline.encode_prompt(
                list(prompts), pipeline._execution_device, 1, do_classifier_free_guidance=False
            )
        return {"prompt_embeds": embeds}

    def empty_conditioning(
        self, network: nn.Module, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> Conditioning:
        features = network.config.cross_attention_dim
        shape = (batch, self.text_tokens, features)
        return {"prompt_embeds": torch.empty(shape, dtype=dtype, device=device)}

    def predict(self, network: nn.Module, noise: Tensor, conditioning: Conditioning) -> Tensor:
        # The noise itself, not multiplied by init_noise_sigma: that is how the network was adapted.
        return _call(network, noise, self.timestep, conditioning).to(noise.dtype)

    def denoise(
        self,
        pipeline: Any,
        noise: Tensor,
        conditioning: Conditioning,
        steps: int = 1,
        generators: Generators = None,
    ) -> Tensor:
        scheduler = pipeline.scheduler
        scheduler.set_timesteps(steps, device=noise.device)
        generators = None if generators is None else list(generators)
        extra = pipeline.prepare_extra_step_kwargs(generators, eta=0.0)
        latents = noise.float() * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            epsilon = _call(pipeline.unet, scaled, t, conditioning).float()
            latents = scheduler.step(epsilon, t, latents, **extra, return_dict=False)[0]
        return latents


def _call(network: nn.Module, x: Tensor, t: Tensor | float, conditioning: Conditioning) -> Tensor:
    dtype = network_dtype(network)
    return network(
        x.to(dtype),
        full_batch(t, x),
        encoder_hidden_states=conditioning["prompt_embeds"].to(dtype),
        return_dict=False,
    )[0]


SD_TURBO = SdTurbo()
