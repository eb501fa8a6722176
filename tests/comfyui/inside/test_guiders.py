"""Samplers of every make: guiders, masks, batches."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch


@dataclass
class FixedNoise:
    """A NOISE that holds its values."""

    values: torch.Tensor
    seed: int = 3

    def generate_noise(self, latent: dict) -> torch.Tensor:
        return self.values


@pytest.fixture
def modulated(comfy, loaded, fresh):
    return comfy.run("HyperNoise_Apply", model=loaded.model, hypernoise=fresh, strength=1.0)[0]


@pytest.fixture
def other_prompt(comfy, loaded) -> list:
    return comfy.nodes.CLIPTextEncode().encode(loaded.clip, "a white square")[0]


def guider(name: str, model: Any, positive: list, other: list) -> Any:
    from comfy_extras import nodes_custom_sampler, nodes_perpneg

    if name == "BasicGuider":
        made = nodes_custom_sampler.BasicGuider.execute(model, positive)
    elif name == "CFGGuider":
        made = nodes_custom_sampler.CFGGuider.execute(model, positive, other, 2.0)
    elif name == "DualCFGGuider":
        made = nodes_custom_sampler.DualCFGGuider.execute(
            model, positive, other, other, 2.0, 1.5, "regular"
        )
    elif name == "DualModelGuider":
        if not hasattr(nodes_custom_sampler, name):
            pytest.skip("this ComfyUI is older than DualModelGuider")
        made = nodes_custom_sampler.DualModelGuider.execute(model, positive, 2.0, model, other)
    else:
        made = nodes_perpneg.PerpNegGuider.execute(model, positive, other, other, 2.0, 0.5)
    return made.args[0]


def sample_advanced(made: Any, noise: torch.Tensor, latent: dict) -> torch.Tensor:
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    sampler = comfy.samplers.sampler_object("euler")
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    out = SamplerCustomAdvanced.execute(FixedNoise(noise), made, sampler, sigmas, latent)
    return out.args[0]["samples"]


@pytest.mark.parametrize(
    "name", ["BasicGuider", "CFGGuider", "DualCFGGuider", "PerpNegGuider", "DualModelGuider"]
)
def test_every_guider_starts_from_the_noise_that_the_positive_prompt_modulates(
    comfy, loaded, modulated, other_prompt, passes, name
):
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    found = sample_advanced(
        guider(name, modulated, loaded.prompt, other_prompt), noise, loaded.latent
    )
    assert len(passes) == 1
    better = comfy.ours("nodes.comfy_model").modulated_noise(modulated, loaded.prompt, noise, 3)
    plain = guider(name, loaded.model, loaded.prompt, other_prompt)
    expected = sample_advanced(plain, better, loaded.latent)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, sample_advanced(plain, noise, loaded.latent), atol=1e-2)


def test_outside_of_a_latent_mask_the_image_stays(comfy, loaded, modulated):
    image = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(6))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1  # the left half is sampled anew
    latent = {"samples": image, "noise_mask": mask}
    found = comfy.sample(modulated, loaded.prompt, latent, steps=2)
    plain = comfy.sample(loaded.model, loaded.prompt, latent, steps=2)
    torch.testing.assert_close(found[..., 4:], image[..., 4:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[..., :4], plain[..., :4], atol=1e-2)


def test_an_image_taken_out_of_a_batch_comes_out_the_same(comfy, loaded, modulated):
    """Latent From Batch keeps an image's place, so that it gets its own noise alone too."""
    batch = comfy.run("HyperNoise_EmptySanaLatent", width=64, height=64, batch_size=3)[0]
    all_three = comfy.sample(modulated, loaded.prompt, batch)
    third = comfy.nodes.LatentFromBatch().frombatch(batch, 2, 1)[0]
    assert third["batch_index"] == [2]
    alone = comfy.sample(modulated, loaded.prompt, third)
    torch.testing.assert_close(alone, all_three[2:], rtol=1e-4, atol=1e-4)
