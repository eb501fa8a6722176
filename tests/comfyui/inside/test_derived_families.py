"""Models that ComfyUI runs and this project has no family for: the adapter's metadata is enough."""

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.families import Derived
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork
from hypernoise.tests.comfyui import stand_ins

POOLED = 16
SIZE = 64  # pixels, of latents 8 x 8


@pytest.fixture
def adapter(tmp_path):
    """A file whose header says family sdxl_turbo, and the diffusers network it is for."""
    torch.manual_seed(3)
    network = stand_ins.sdxl_turbo(POOLED)
    hypernetwork = NoiseHypernetwork.initialise(
        network, Derived("sdxl_turbo", "conv_out"), rank=4, alpha=8
    )
    with torch.no_grad():
        for name, weight in hypernetwork.named_parameters():
            if name.endswith("up"):
                weight.normal_(std=0.05)
    return network, save_adapter(hypernetwork, tmp_path / "sdxl.safetensors")


def test_sdxl_turbo_gives_what_the_diffusers_network_gives(comfy, adapter):
    from hypernoise.tests.comfyui.inside.networks import as_model

    network, path = adapter
    noise, prompt, pooled = (torch.randn(2, *shape) for shape in ((4, 8, 8), (7, 32), (POOLED,)))
    sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * 2)
    with load_adapter(path).attached(network):
        expected = network(
            noise,
            999,
            encoder_hidden_states=prompt,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
    ours = comfy.ours("nodes.comfy_model")
    hypernetwork = comfy.ours("hypernoise_core.adapter").load_adapter(path)
    model = ours.apply(as_model(network), ours.Hypernoise.of(hypernetwork, "sdxl"), 1.0)
    positive = [[prompt, {"pooled_output": pooled}]]
    found = ours.modulated_noise(model, positive, noise, 0) - noise
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_outside_comfyui_the_family_says_that_it_cannot_run(adapter):
    network, path = adapter
    with pytest.raises(ValueError, match="'sdxl_turbo'; its adapters run in ComfyUI"):
        load_adapter(path)(network, torch.zeros(1, 4, 8, 8), {})
