"""SANA-Sprint's transformer as a ComfyUI MODEL.

Seen from its x0 estimate, x0 = x - s * F(x, s) with s = sin t / (sin t + cos t), SANA-Sprint's
TrigFlow is flow matching with timestep = sigma = s, so ComfyUI's stock samplers serve it:
model type FLOW, shift 1, multiplier 1.
"""

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...hypernoise_core.library_folder import building_from
from ..comfy_model import WholeModelPatcher
from .diffusers_library import diffusers, from_folder

CHANNELS = 32  # of the published models' latents
DOWNSCALE = 32  # image pixels for one latent pixel there
GUIDANCE = 4.5  # the value the published models were distilled at


def load(
    folder: Path, dtype: torch.dtype | None, vae: comfy.sd.VAE, variant: str | None = None
) -> WholeModelPatcher:
    """The MODEL of a SANA-Sprint folder; dtype None picks one for the device, variant None the
    weights without one.

    The latents' scale and size come from the folder's `vae`.
    """
    scale = vae.first_stage_model.autoencoder.config.scaling_factor
    return _load(folder, dtype, variant, vae.downscale_ratio, scale)


def _load(
    folder: Path, dtype: torch.dtype | None, variant: str | None, downscale: int, scale: float
) -> WholeModelPatcher:
    device = management.get_torch_device()
    dtype = dtype or choose_dtype(device)
    with building_from(folder / "transformer"):
        network = network_class().from_pretrained(
            folder, subfolder="transformer", **from_folder(dtype, variant)
        )
    latent_format = SanaLatent(
        channels=network.config.in_channels, downscale=downscale, scale=scale
    )
    model = SanaSprint(SanaConfig(latent_format), network.requires_grad_(False).eval())
    patcher = WholeModelPatcher(model, device, management.unet_offload_device())
    return patcher.with_factory(lambda: _load(folder, dtype, variant, downscale, scale))


def choose_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, in which SANA was trained and published, where the device computes with it."""
    return torch.bfloat16 if management.should_use_bf16(device) else torch.float32


class SanaLatent(comfy.latent_formats.LatentFormat):
    """Latents in ComfyUI's graph are those of the VAE; the sampler's are `scale` times them."""

    def __init__(
        self, channels: int = CHANNELS, downscale: int = DOWNSCALE, scale: float = 1.0
    ) -> None:
        self.latent_channels = channels
        self.spacial_downscale_ratio = downscale
        self.scale_factor = scale


class SanaConfig(comfy.supported_models_base.BASE):
    """What BaseModel asks of a model family."""

    unet_extra_config: ClassVar[dict[str, Any]] = {}
    sampling_settings: ClassVar[dict[str, float]] = {"shift": 1.0, "multiplier": 1.0}
    memory_usage_factor = 4.0  # 33 MB for 1024 x 1024 in bfloat16, twice that with a hypernetwork

    def __init__(self, latent_format: SanaLatent) -> None:
        super().__init__(
            {
                "disable_unet_model_creation": True,  # SanaSprint brings its own
                "in_channels": latent_format.latent_channels,
            }
        )
        self.latent_format = latent_format


class _KnownByName(type):
    """The type of a model of which ComfyUI's tables for LoRAs are to know a layer by more names.

    `comfy.lora.model_lora_keys_unet` has a list of names for each class of model, and asks with
    isinstance. Here the classes in `named_like` are bases whose names apply, but which no attribute
    is taken from: they come last in the method resolution order.
    """

    named_like: tuple[type, ...]

    def mro(cls) -> list[type]:
        return [*super().mro(), *cls.__dict__.get("named_like", ())]


class SanaSprint(comfy.model_base.BaseModel, metaclass=_KnownByName):
    """ComfyUI's view of the network: sampling, latent format, conditioning."""

    # A layer is called transformer.LAYER by diffusers, LAYER by others, base_model.model.LAYER by
    # peft; diffusion_model.LAYER and lora_unet_LAYER hold for every model.
    named_like = (
        comfy.model_base.HiDream,
        comfy.model_base.GenmoMochi,
        comfy.model_base.HunyuanDiT,
    )

    def __init__(self, config: SanaConfig, network: torch.nn.Module) -> None:
        super().__init__(config, comfy.model_base.ModelType.FLOW)
        self.diffusion_model = network

    def extra_conds(self, **cond: Any) -> dict[str, comfy.conds.CONDRegular]:
        """The network's inputs from one entry of a CONDITIONING.

        The stock FluxGuidance node sets "guidance"; without it, and where FluxDisableGuidance has
        set None, the trained value is used: the network has no mode without guidance.
        """
        out = super().extra_conds(**cond)
        config = self.diffusion_model.config
        context, mask = cond.get("cross_attn"), cond.get("attention_mask")
        if context is not None:
            _check_context(context, mask, config.caption_channels)
            out["c_crossattn"] = comfy.conds.CONDRegular(context)
        if mask is not None:
            out["attention_mask"] = comfy.conds.CONDRegular(mask)
        guidance = cond.get("guidance")
        scale = config.guidance_embeds_scale * (GUIDANCE if guidance is None else guidance)
        out["guidance"] = comfy.conds.CONDRegular(torch.tensor([scale]))
        return out


def _check_context(context: torch.Tensor, mask: torch.Tensor | None, width: int) -> None:
    """Prompt embeddings (B, L, D) must be SANA's own, mask (B, L)."""
    if context.shape[-1] != width:
        raise ValueError(
            f"This prompt was encoded with {context.shape[-1]} channels, but SANA-Sprint needs "
            f"{width}. Encode it with the CLIP of the same Load SANA-Sprint node."
        )
    if mask is not None and mask.shape[1] != context.shape[1]:
        raise ValueError(
            f"SANA-Sprint does not support a concatenated prompt ({context.shape[1]} tokens). Use "
            f"a single prompt, or Conditioning (Combine) or (Average) instead of Conditioning "
            f"(Concat)."
        )


@cache
def network_class() -> type[torch.nn.Module]:
    """diffusers' transformer, called the way ComfyUI calls a diffusion model.

    Defined in a function because diffusers is imported only when a folder is loaded. It keeps the
    name of diffusers' class, which the folder's config.json holds.
    """

    class SanaTransformer2DModel(diffusers().SanaTransformer2DModel):
        """Module names are diffusers' own, so hypernetworks and LoRAs find them."""

        def forward(
            self,
            x: torch.Tensor,
            timestep: torch.Tensor,
            context: torch.Tensor | None = None,
            control: Any = None,
            transformer_options: dict | None = None,
            **conds: Any,
        ) -> torch.Tensor:
            """x (B, C, H, W) and timestep = sigma (B,) in 0..1 -> F(x, sigma), like x."""
            wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options or {})
            executor = WrapperExecutor.new_class_executor(self._run, self, wrappers)
            return executor.execute(x, timestep, context, control, transformer_options, **conds)

        def _run(self, x, timestep, context, control, transformer_options, **conds) -> torch.Tensor:
            return super().forward(
                x,
                context,
                timestep=timestep,
                guidance=conds.get("guidance"),
                encoder_attention_mask=conds.get("attention_mask"),
                return_dict=False,
            )[0]

    return SanaTransformer2DModel
