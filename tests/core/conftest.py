"""Tiny random networks and pipelines of every family, and noise hypernetworks on them."""

from dataclasses import dataclass

import diffusers
import pytest
import torch
from torch import Tensor, nn

from hypernoise.hypernoise_core.families import FAMILIES, Family, get_family
from hypernoise.hypernoise_core.families.flux import pack_latents
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork, sample_noise

BATCH = 3
TOKENS = 5


@dataclass
class Tiny:
    """A family's stock pipeline with random weights and no text encoders, and inputs for it."""

    family: Family
    pipeline: diffusers.DiffusionPipeline
    noise: Tensor
    conditioning: dict[str, Tensor]

    @property
    def network(self) -> nn.Module:
        return self.family.network(self.pipeline)

    def hypernetwork(self, rank: int = 4, seed: int = 0, **options) -> NoiseHypernetwork:
        """f with random A and B, so that f is not 0."""
        generator = torch.Generator().manual_seed(seed)
        f = NoiseHypernetwork.initialise(
            self.network, self.family, rank=rank, alpha=2 * rank, generator=generator, **options
        )
        with torch.no_grad():
            for branch in f.branches.values():
                branch.up.normal_(std=0.2, generator=generator)
        return f

    def predict(self) -> Tensor:
        return self.family.predict(self.network, self.noise, self.conditioning)

    def stock_images(
        self,
        steps: int,
        generators: list[torch.Generator] | None,
        height: int,
        width: int,
        latents: Tensor | None = None,
        **options,
    ) -> Tensor:
        """What the stock pipeline's call makes of the conditioning.

        Args:
            latents: (B, C, H, W); None: the pipeline draws them from the generators.
        """
        arguments = {"prompt_embeds": self.conditioning["prompt_embeds"], **options}
        if self.family.name == "sana_sprint":
            arguments["prompt_attention_mask"] = self.conditioning["prompt_attention_mask"]
            arguments["use_resolution_binning"] = False
            if steps != 2:
                arguments["intermediate_timesteps"] = None
        if self.family.name == "flux":
            latents = None if latents is None else pack_latents(latents)
            arguments["pooled_prompt_embeds"] = self.conditioning["pooled_prompt_embeds"]
        if self.family.name == "sd_turbo":
            arguments["guidance_scale"] = 0.0
        return self.pipeline(
            **arguments,
            height=height,
            width=width,
            num_inference_steps=steps,
            latents=latents,
            generator=generators,
            output_type="pt",
        ).images


def sana_parts() -> dict[str, object]:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
        timestep_scale=1000.0,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 8),
        decoder_block_out_channels=(4, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return {"transformer": transformer, "vae": vae, "scheduler": diffusers.SCMScheduler()}


def flux_parts(guidance_embeds: bool = False, dynamic: bool = False) -> dict[str, object]:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=guidance_embeds,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic)
    vae = tiny_vae(scaling_factor=0.3611, shift_factor=0.1159)
    return {"transformer": transformer, "vae": vae, "scheduler": scheduler}


def sd_turbo_parts() -> dict[str, object]:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        norm_num_groups=4,
        attention_head_dim=4,
        use_linear_projection=True,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        steps_offset=1,
    )
    return {"unet": unet, "vae": tiny_vae(scaling_factor=0.18215), "scheduler": scheduler}


def tiny_vae(**options) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        **options,
    )


PARTS = {"sana_sprint": sana_parts, "flux": flux_parts, "sd_turbo": sd_turbo_parts}
CONDITIONING_SHAPES = {
    "sana_sprint": {"prompt_embeds": (TOKENS, 12)},
    "flux": {"prompt_embeds": (TOKENS, 12), "pooled_prompt_embeds": (10,)},
    "sd_turbo": {"prompt_embeds": (TOKENS, 12)},
}


def build_tiny(name: str, **options) -> Tiny:
    """A tiny pipeline of the family; always the same weights."""
    family = get_family(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = PARTS[name](**options)
        conditioning = {
            key: torch.randn(BATCH, *shape) for key, shape in CONDITIONING_SHAPES[name].items()
        }
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    cls = getattr(diffusers, family.pipeline_class)
    empty = dict.fromkeys(cls._get_signature_keys(cls)[0] - parts.keys() - {"self"})
    pipeline = cls(**parts, **empty)
    pipeline.set_progress_bar_config(disable=True)
    if name == "sana_sprint":
        mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
        mask[0, 3:] = 0
        conditioning |= {"prompt_attention_mask": mask, "guidance": torch.full((BATCH,), 0.45)}
    if options.get("guidance_embeds"):
        conditioning["guidance"] = torch.full((BATCH,), 3.5)
    shape = family.latent_shape(pipeline, 16, 16)
    return Tiny(family, pipeline, sample_noise(shape, range(BATCH)), conditioning)


@pytest.fixture(scope="session")
def make_tiny():
    """Builds a pipeline that the test may change."""
    return build_tiny


@pytest.fixture(scope="session", params=[family.name for family in FAMILIES])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """One pipeline of each family, shared by the tests, which leave it as it is."""
    return build_tiny(request.param)


@pytest.fixture(scope="session")
def tiny_sana() -> Tiny:
    return build_tiny("sana_sprint")
