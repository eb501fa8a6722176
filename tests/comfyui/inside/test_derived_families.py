"""Models that ComfyUI runs and this project has no family for: the adapter's metadata is enough."""

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.families import Derived
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork
from hypernoise.tests.comfyui import stand_ins

POOLED = 16
SIZE = 64  # pixels, of latents 8 x 8


def save_adapter_of(network, family, last_layer, path):
    """A file whose header alone says which family it is of."""
    hypernetwork = NoiseHypernetwork.initialise(
        network, Derived(family, last_layer), rank=4, alpha=8
    )
    with torch.no_grad():
        for name, weight in hypernetwork.named_parameters():
            if name.endswith("up"):
                weight.normal_(std=0.05)
    return save_adapter(hypernetwork, path)


def modulation(comfy, network, path, positive, noise):
    """What the adapter adds to the noise inside ComfyUI."""
    from hypernoise.tests.comfyui.inside.networks import as_model

    ours = comfy.ours("nodes.comfy_model")
    hypernetwork = comfy.ours("hypernoise_core.adapter").load_adapter(path)
    model = ours.apply(as_model(network), ours.Hypernoise.of(hypernetwork, path.name), 1.0)
    return ours.modulated_noise(model, positive, noise, 0) - noise


def test_sdxl_turbo_gives_what_the_diffusers_network_gives(comfy, tmp_path):
    torch.manual_seed(3)
    network = stand_ins.sdxl_turbo(POOLED)
    path = save_adapter_of(network, "sdxl_turbo", "conv_out", tmp_path / "sdxl.safetensors")
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
    found = modulation(comfy, network, path, [[prompt, {"pooled_output": pooled}]], noise)
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_z_image_turbo_gives_what_the_diffusers_network_gives(comfy, tmp_path):
    torch.manual_seed(3)
    network = stand_ins.z_image()
    last_layer = "all_final_layer.2-1.linear"
    path = save_adapter_of(network, "z_image", last_layer, tmp_path / "z_image.safetensors")
    # 32 tokens and 64 patches, which both sides take without padding.
    noise, prompt = torch.randn(2, 16, 16, 16), torch.randn(2, 32, 32)
    with load_adapter(path).attached(network):
        images = network(list(noise.unsqueeze(2)), torch.zeros(2), list(prompt), return_dict=False)[
            0
        ]
    expected = torch.stack(list(images)).squeeze(2)
    found = modulation(comfy, network, path, [[prompt, {}]], noise)
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_outside_comfyui_the_family_says_that_it_cannot_run(tmp_path):
    network = stand_ins.sdxl_turbo(POOLED)
    path = save_adapter_of(network, "sdxl_turbo", "conv_out", tmp_path / "sdxl.safetensors")
    with pytest.raises(ValueError, match="'sdxl_turbo'; its adapters run in ComfyUI"):
        load_adapter(path)(network, torch.zeros(1, 4, 8, 8), {})
