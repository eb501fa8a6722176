"""The generator and the hypernetworks that the tests put into a models folder."""

from pathlib import Path

import torch

# One hypernetwork in both forms, one that differs, one of another family.
FILE, PEFT_FOLDER, OTHER, FLUX = "file.safetensors", "peft", "other.safetensors", "flux.safetensors"
ADAPTERS = (FILE, PEFT_FOLDER)
SEED = 11


def write_models(models: Path, assets: Path) -> tuple[str, Path]:
    """Fill `models`; returns the generator's name in the widget and its folder."""
    from diffusers import SanaSprintPipeline

    name, folder = _generator(models, assets)
    network = SanaSprintPipeline.from_pretrained(folder).transformer
    target = models / "hypernoise"
    target.mkdir(parents=True)
    save_random(network, "sana_sprint", SEED, target / FILE, target / PEFT_FOLDER)
    save_random(network, "sana_sprint", SEED + 1, target / OTHER)
    save_random(_flux(), "flux", SEED, target / FLUX)
    return name, folder


def _generator(models: Path, assets: Path) -> tuple[str, Path]:
    """The embedded tiny-sprint, or one of its shape with random weights where it is missing."""
    embedded = assets / "tiny-sprint"
    if (embedded / "model_index.json").is_file():
        return "tiny-sprint (embedded)", embedded
    from hypernoise.training.tiny_world.recipe.generator import build_pipeline

    folder = models / "sana_sprint" / "tiny-random"
    build_pipeline().save_pretrained(folder)
    return folder.name, folder


def save_random(network: torch.nn.Module, family: str, seed: int, *paths: Path) -> None:
    """A hypernetwork with random weights, so strong that its effect is plain to see."""
    from hypernoise.hypernoise_core.adapter import save_adapter
    from hypernoise.hypernoise_core.families import get_family
    from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork

    generator = torch.Generator().manual_seed(seed)
    hypernetwork = NoiseHypernetwork.initialise(
        network, get_family(family), rank=4, alpha=8, generator=generator
    )
    with torch.no_grad():
        for name, weight in hypernetwork.named_parameters():
            if name.endswith("up"):
                weight.normal_(std=0.05, generator=generator)
    for path in paths:
        save_adapter(hypernetwork, path)


def _flux() -> torch.nn.Module:
    """The smallest that ComfyUI loads: it takes heads of 128 features for granted."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        in_channels=64,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(16, 56, 56),
    ).eval()


def _unet(**options: object) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
        use_linear_projection=True,
        **options,
    ).eval()


def sdxl_turbo(pooled: int) -> torch.nn.Module:
    """Of SDXL's shape: a pooled prompt (B, pooled) and six sizes are embedded beside the time."""
    return _unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=pooled + 6 * 256,
    )


def z_image() -> torch.nn.Module:
    """Of Z-Image-Turbo's shape, one block of each kind.

    ComfyUI takes a time embedding 1024 wide for granted, which diffusers has at any width.
    """
    from diffusers import ZImageTransformer2DModel

    network = ZImageTransformer2DModel(
        dim=1024,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=8,
        n_kv_heads=8,
        cap_feat_dim=32,
    ).eval()
    for token in (network.x_pad_token, network.cap_pad_token):
        torch.nn.init.normal_(token)  # diffusers leaves their memory as it is
    return network


# By family: a small network with random weights, the shape of its latents, of its conditioning.
NETWORKS = {"flux": _flux, "sd_turbo": _unet}
LATENTS = {"flux": (16, 8, 8), "sd_turbo": (4, 8, 8)}
CONDITIONING = {
    "flux": {"prompt_embeds": (7, 32), "pooled_prompt_embeds": (16,)},
    "sd_turbo": {"prompt_embeds": (7, 32)},
}
