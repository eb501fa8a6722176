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
    _save(network, "sana_sprint", SEED, target / FILE, target / PEFT_FOLDER)
    _save(network, "sana_sprint", SEED + 1, target / OTHER)
    _save(_flux(), "flux", SEED, target / FLUX)
    return name, folder


def _generator(models: Path, assets: Path) -> tuple[str, Path]:
    """The embedded tiny-sprint, or one of its shape with random weights where it is missing."""
    embedded = assets / "tiny-sprint"
    if (embedded / "model_index.json").is_file():
        return "tiny-sprint (embedded)", embedded
    from hypernoise.training.tiny_world.generator import build_pipeline

    folder = models / "sana_sprint" / "tiny-random"
    build_pipeline().save_pretrained(folder)
    return folder.name, folder


def _save(network: torch.nn.Module, family: str, seed: int, *paths: Path) -> None:
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
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        in_channels=16,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
