"""A fine-tune LoRA in ComfyUI's own LoRA loader: all of it is used, as on diffusers' network."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hypernoise.hypernoise_core.families import get_family
from hypernoise.hypernoise_core.generator_lora import GeneratorLora, save_generator_lora

FAMILIES = ("sana_sprint", "flux", "sd_turbo")
FILE = "finetune.safetensors"
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Setting:
    """A network in both worlds, with the same inputs."""

    network: torch.nn.Module  # of diffusers
    model: Any
    noise: torch.Tensor
    conditioning: dict[str, torch.Tensor]
    positive: list


@pytest.fixture(params=FAMILIES)
def family(request):
    return get_family(request.param)


@pytest.fixture
def setting(family, models, loaded, stand_in) -> Setting:
    if family.name != "sana_sprint":
        built = stand_in(family.name, batch=2)
        return Setting(built.network, built.model, built.noise, built.conditioning, built.positive)
    from diffusers import SanaTransformer2DModel

    network = SanaTransformer2DModel.from_pretrained(models.folder_path, subfolder="transformer")
    [[embeddings, extra]] = loaded.prompt
    conditioning = {
        "prompt_embeds": embeddings.repeat(2, 1, 1),
        "prompt_attention_mask": extra["attention_mask"].repeat(2, 1),
        "guidance": torch.full((2,), 4.5 * network.config.guidance_embeds_scale),
    }
    noise = torch.randn(2, network.config.in_channels, 8, 8, generator=torch.manual_seed(6))
    return Setting(network, loaded.model, noise, conditioning, loaded.prompt)


@pytest.fixture
def lora(family, setting) -> GeneratorLora:
    """Strong enough that its effect is plain to see."""
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode(False):
        made = GeneratorLora.initialise(
            setting.network, family, rank=4, alpha=6, generator=generator
        )
    for branch in made.branches.values():
        branch.up.data.normal_(std=0.05, generator=generator)
    return made


@pytest.fixture
def path(models, lora) -> Path:
    """The file in models/loras."""
    return save_generator_lora(lora, models.base / "models" / "loras" / FILE, for_comfyui=True)


def with_lora(comfy, model: Any, strength: float = 1.0) -> Any:
    return comfy.nodes.LoraLoaderModelOnly().load_lora_model_only(model, FILE, strength)[0]


def with_bypass(comfy, model: Any, strength: float) -> Any:
    """The loader that adds the branches to the layers' outputs in place of patching weights."""
    from comfy_extras.nodes_lora_debug import LoraLoaderBypassModelOnly

    return LoraLoaderBypassModelOnly().load_lora_model_only(model, FILE, strength)[0]


def with_hook(positive: list, strength: float) -> list:
    """The conditioning that brings the LoRA along."""
    from comfy_extras.nodes_hooks import ConditioningSetProperties, CreateHookLoraModelOnly

    hooks = CreateHookLoraModelOnly().create_hook_model_only(FILE, strength)[0]
    return ConditioningSetProperties().set_properties(positive, 1.0, "default", hooks=hooks)[0]


def denoised(setting: Setting, model: Any) -> torch.Tensor:
    """x0 = x - sigma * output from pure noise, in the units of the network."""
    import comfy.sample
    import comfy.samplers

    sigma = float(model.get_model_object("model_sampling").sigma_max)
    latents = comfy.sample.sample_custom(
        model,
        setting.noise,
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.tensor([sigma, 0.0]),
        setting.positive,
        setting.positive,
        torch.zeros_like(setting.noise),
        disable_pbar=True,
        seed=0,
    )
    return model.model.latent_format.process_in(latents)


def change(family: Any, setting: Setting, lora: GeneratorLora) -> torch.Tensor:
    """Of the output of diffusers' network, by the LoRA."""
    with torch.no_grad():
        plain = family.predict(setting.network, setting.noise, setting.conditioning)
        with lora.attached(setting.network):
            return family.predict(setting.network, setting.noise, setting.conditioning) - plain


def test_every_key_is_used(comfy, setting, lora, path, caplog):
    with caplog.at_level(logging.WARNING):
        patched = with_lora(comfy, setting.model)
    assert caplog.text == ""
    with safe_open(path, "pt") as file:
        assert len(list(file.keys())) == 2 * len(lora.layer_names)
    # Several layers may land on slices of one weight.
    patches = sum(len(of_weight) for of_weight in patched.patches.values())
    assert patches == len(lora.layer_names)


def test_it_changes_the_output_as_on_diffusers_network(comfy, family, setting, lora, path):
    plain = denoised(setting, setting.model)
    changed = denoised(setting, with_lora(comfy, setting.model))
    sigma = float(setting.model.get_model_object("model_sampling").sigma_max)
    got = (plain - changed) / sigma

    expected = change(family, setting, lora)
    assert (got - expected).norm() / expected.norm() < TOLERANCE
    assert torch.equal(denoised(setting, setting.model), plain)


SANA_NAMES = {
    "diffusers": ("transformer.{}", "lora_A", "lora_B"),
    "diffusers, linear_layer": ("transformer.{}", "lora.down", "lora.up"),
    "bare": ("{}", "lora_A", "lora_B"),
    "peft": ("base_model.model.{}", "lora_A", "lora_B"),
    "ComfyUI": ("diffusion_model.{}", "lora_A", "lora_B"),
    "kohya": ("lora_unet_{}", "lora_down", "lora_up"),
    "LyCORIS": ("lycoris_{}", "lora_down", "lora_up"),
}


def write_attention_lora(lora: GeneratorLora, path: Path, names: str) -> GeneratorLora:
    """As trainers write it: on attention, with an alpha of its own; returns what is in the file."""
    template, down, up = SANA_NAMES[names]
    branches = {name: b for name, b in lora.branches.items() if ".attn" in name and ".to_" in name}
    tensors = {}
    for name, branch in branches.items():
        layer = template.format(name.replace(".", "_") if template[-3:] == "_{}" else name)
        tensors[f"{layer}.{down}.weight"] = branch.down.detach().contiguous()
        tensors[f"{layer}.{up}.weight"] = branch.up.detach().contiguous()
        tensors[f"{layer}.alpha"] = torch.tensor(float(branch.alpha))
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return GeneratorLora(branches, lora.metadata)


@pytest.mark.parametrize("family", ["sana_sprint"], indirect=True)
@pytest.mark.parametrize("names", SANA_NAMES)
def test_a_sana_lora_works_by_every_name_in_every_loader(
    comfy, family, setting, loaded, lora, models, names, caplog
):
    written = write_attention_lora(lora, models.base / "models" / "loras" / FILE, names)
    plain = denoised(setting, setting.model)
    expected = change(family, setting, written)
    assert expected.norm() / plain.norm() > 0.01
    with caplog.at_level(logging.WARNING):
        both = comfy.nodes.LoraLoader().load_lora(setting.model, loaded.clip, FILE, 1.0, 1.0)
        found = {
            "weights": denoised(setting, with_lora(comfy, setting.model)),
            "model and clip": denoised(setting, both[0]),
            "bypass": denoised(setting, with_bypass(comfy, setting.model, 1.0)),
            "hook": denoised(
                replace(setting, positive=with_hook(setting.positive, 1.0)), setting.model
            ),
        }
    assert caplog.text == ""
    for loader, changed in found.items():
        assert (plain - changed - expected).norm() / expected.norm() < TOLERANCE, loader
    assert torch.equal(denoised(setting, setting.model), plain)


def test_sana_takes_nothing_but_names_from_the_models_that_it_is_named_like(loaded):
    """They are bases for the table's isinstance alone: no method of theirs may come in between."""
    import comfy.model_base

    sana = type(loaded.model.model)
    own = {*dir(comfy.model_base.BaseModel), *vars(sana)}
    for lender in sana.named_like:
        assert issubclass(sana, lender)
        for name in own - {"__class__"}:
            lent = vars(lender).get(name)
            assert lent is None or getattr(sana, name, None) is not lent, name
