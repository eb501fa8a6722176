"""Every sampler and scheduler of ComfyUI, on each family: one pass, and the images change."""

import itertools
from typing import Any

import pytest
import torch

STEPS = 2
FAMILIES = ("sana_sprint", "flux", "sd_turbo")


@pytest.fixture(params=FAMILIES)
def setting(request, loaded, stand_in) -> tuple[Any, Any, list, torch.Tensor]:
    """MODEL, HYPERNOISE, CONDITIONING and an empty latent (1, C, H, W) of a family."""
    if request.param == "sana_sprint":
        latent = torch.zeros(1, loaded.model.model.latent_format.latent_channels, 8, 8)
        return loaded.model, loaded.hypernoise, loaded.prompt, latent
    built = stand_in(request.param)
    return built.model, built.hypernoise, built.positive, torch.zeros_like(built.noise)


@pytest.mark.slow
def test_one_pass_with_every_sampler_and_scheduler(comfy, setting, passes, capsys):
    from comfy.samplers import SAMPLER_NAMES, SCHEDULER_NAMES

    model, hypernoise, positive, latent = setting
    modulated = comfy.run("HyperNoise_Apply", model=model, hypernoise=hypernoise, strength=1.0)[0]
    wrong, count = [], 0
    for seed, (sampler, scheduler) in enumerate(itertools.product(SAMPLER_NAMES, SCHEDULER_NAMES)):
        plain, changed = (
            comfy.nodes.common_ksampler(
                source, seed, STEPS, 1.0, sampler, scheduler, positive, positive,
                {"samples": latent},
            )[0]["samples"]
            for source in (model, modulated)
        )  # fmt: skip
        count += 1
        fine = torch.isfinite(changed).all() or not torch.isfinite(plain).all()
        if len(passes) != 1 or not fine or torch.equal(plain, changed):
            wrong.append((sampler, scheduler, len(passes)))
        passes.clear()
    with capsys.disabled():
        print(f"{count} combinations of sampler and scheduler")
    assert wrong == []
    assert count == len(SAMPLER_NAMES) * len(SCHEDULER_NAMES)
