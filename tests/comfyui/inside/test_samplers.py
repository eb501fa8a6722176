"""Every sampler and scheduler of ComfyUI, on each family: one pass, and the images change."""

import itertools
from typing import Any

import pytest
import torch

from hypernoise.tests.comfyui import stand_ins

STEPS = 2
BELOW_FULL_NOISE = {"ddim_uniform"}  # its first sigma is not the highest one
FAMILIES = ("sana_sprint", "flux", "sd_turbo")


@pytest.fixture(params=FAMILIES)
def setting(request, comfy, loaded, tmp_path) -> tuple[Any, Any, list, torch.Tensor]:
    """MODEL, HYPERNOISE, CONDITIONING and an empty latent (1, C, H, W) of a family."""
    from hypernoise.tests.comfyui.inside.networks import as_model

    if request.param == "sana_sprint":
        latent = torch.zeros(1, loaded.model.model.latent_format.latent_channels, 8, 8)
        return loaded.model, loaded.hypernoise, loaded.prompt, latent
    network = stand_ins.NETWORKS[request.param]()
    path = tmp_path / "adapter.safetensors"
    stand_ins.save_random(network, request.param, 5, path)
    hypernetwork = comfy.ours("hypernoise_core.adapter").load_adapter(path)
    hypernoise = comfy.ours("nodes.comfy_model").Hypernoise.of(hypernetwork, "random")
    shapes = stand_ins.CONDITIONING[request.param]
    generator = torch.Generator().manual_seed(2)
    values = {name: torch.randn(1, *shape, generator=generator) for name, shape in shapes.items()}
    pooled = values.get("pooled_prompt_embeds")
    positive = [[values["prompt_embeds"], {} if pooled is None else {"pooled_output": pooled}]]
    latent = torch.zeros(1, *stand_ins.LATENTS[request.param])
    return as_model(network), hypernoise, positive, latent


@pytest.mark.slow
def test_one_pass_with_every_sampler_and_scheduler(comfy, setting, passes):
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
        expected = 0 if scheduler in BELOW_FULL_NOISE else 1
        fine = torch.isfinite(changed).all() or not torch.isfinite(plain).all()
        if len(passes) != expected or not fine or torch.equal(plain, changed) == bool(expected):
            wrong.append((sampler, scheduler, len(passes)))
        passes.clear()
    print(f"{count} combinations of sampler and scheduler")
    assert wrong == []
    assert count == len(SAMPLER_NAMES) * len(SCHEDULER_NAMES)
