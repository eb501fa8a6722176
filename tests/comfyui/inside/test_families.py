"""FLUX and SD-Turbo on ComfyUI's own models: the hypernetwork does there what it does in diffusers.

The cases of the reference implementation run through the same code where they are at hand.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter
from hypernoise.tests.comfyui.inside.conftest import positive_of
from hypernoise.tests.parity.conftest import Case, case_folders, family_of_folder

FAMILIES = ("flux", "sd_turbo")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Setting:
    """A network in both worlds, with the same inputs."""

    family: str
    model: Any
    hypernoise: Any
    noise: torch.Tensor
    positive: list
    delta: torch.Tensor
    recorded: dict[str, torch.Tensor]


@pytest.fixture(params=FAMILIES)
def random_setting(request, stand_in) -> Setting:
    """Random weights, so that this runs without the reference's cases."""
    built = stand_in(request.param, batch=2)
    delta = load_adapter(built.adapter)(built.network, built.noise, built.conditioning)
    return Setting(
        request.param, built.model, built.hypernoise, built.noise, built.positive, delta, {}
    )


def reference_cases() -> list:
    folders = []
    for folder in case_folders():
        family = family_of_folder(folder)
        if family and family.name in FAMILIES:
            folders.append(pytest.param(folder, id=folder.name))
    skipped = pytest.mark.skip(reason="no recorded case of FLUX or SD-Turbo is at hand")
    return folders or [pytest.param(None, marks=skipped)]


@pytest.fixture(params=reference_cases())
def reference_setting(request, comfy) -> Setting:
    from hypernoise.tests.comfyui.inside.networks import as_model

    case = Case(request.param)
    hypernetwork = comfy.ours("hypernoise_core.adapter").load_adapter(request.param / "adapter")
    return Setting(
        case.family.name,
        as_model(case.network),
        comfy.ours("nodes.comfy_model").Hypernoise.of(hypernetwork, "case"),
        case.noise,
        positive_of(case.conditioning),
        case.tensors["delta"],
        case.tensors,
    )


def modulated(comfy, setting: Setting) -> Any:
    return comfy.run(
        "HyperNoise_Apply", model=setting.model, hypernoise=setting.hypernoise, strength=1.0
    )[0]


def denoise(setting: Setting, model: Any, steps: int) -> torch.Tensor:
    """Latents as diffusers has them before the VAE's scaling: Euler from 1 in equal steps."""
    import comfy.sample
    import comfy.samplers

    sampling = setting.model.get_model_object("model_sampling")
    levels = torch.linspace(1, 1 / steps, steps) * float(sampling.sigma_max)
    latents = comfy.sample.sample_custom(
        model,
        setting.noise,
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.cat([levels, torch.zeros(1)]),
        setting.positive,
        setting.positive,
        torch.zeros_like(setting.noise),
        disable_pbar=True,
        seed=0,
    )
    return setting.model.model.latent_format.process_in(latents)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def delta_of(comfy, setting: Setting) -> torch.Tensor:
    seen = comfy.ours("nodes.comfy_model").modulated_noise(
        modulated(comfy, setting), setting.positive, setting.noise, 0
    )
    return seen - setting.noise


def test_delta_equals_the_core_s_on_diffusers(comfy, random_setting):
    assert error(delta_of(comfy, random_setting), random_setting.delta) < TOLERANCE


def test_weights_and_hooks_are_as_before(comfy, random_setting):
    network = random_setting.model.model.diffusion_model
    before = [weight.cpu().clone() for weight in network.state_dict().values()]
    plain = denoise(random_setting, random_setting.model, 1)
    changed = denoise(random_setting, modulated(comfy, random_setting), 1)
    assert not torch.equal(plain, changed)
    assert torch.equal(denoise(random_setting, random_setting.model, 1), plain)
    after = [weight.cpu() for weight in network.state_dict().values()]
    assert all(map(torch.equal, after, before))
    assert not any(module._forward_hooks for module in network.modules())


def test_reference_delta(comfy, reference_setting):
    assert error(delta_of(comfy, reference_setting), reference_setting.delta) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", ["base", "hypernoise"])
def test_reference_latents_of_flow_models(comfy, reference_setting, kind, steps):
    """SD-Turbo is not compared: ComfyUI scales its first noise by sqrt(1 + sigma^2), not sigma."""
    expected = reference_setting.recorded.get(f"latent_{kind}_{steps}step")
    if expected is None or reference_setting.family != "flux":
        pytest.skip("not recorded, or a model whose noise ComfyUI scales in its own way")
    model = reference_setting.model if kind == "base" else modulated(comfy, reference_setting)
    assert error(denoise(reference_setting, model, steps), expected) < TOLERANCE
