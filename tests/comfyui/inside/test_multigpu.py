"""ComfyUI's nodes for several GPUs make a model once more: ours say how, and the pass still runs.

The second device is the CPU under its other name.
"""

import copy
from typing import Any

import pytest
import torch

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 0)


@pytest.fixture(autouse=True)
def two_devices(comfy, monkeypatch):
    pytest.importorskip("comfy.multigpu", reason="this ComfyUI knows one GPU")
    import comfy.model_management as management

    if management.get_torch_device() != FIRST:
        pytest.skip("the tests of the CPU")
    monkeypatch.setattr(management, "get_all_torch_devices", lambda *_, **__: [FIRST, SECOND])


def work_units(model: Any) -> Any:
    """MultiGPU CFG Split."""
    from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode

    return MultiGPUCFGSplitNode.execute(model, 2).args[0]


def moved(model: Any) -> Any:
    """What Select Model Device does."""
    return model.clone().deepclone_multigpu(new_load_device=SECOND)


def shared(model: Any) -> Any:
    """What Select Model Device does for the CPU: the same network, with another device."""
    clone = model.clone()
    clone.load_device = SECOND
    return clone


@pytest.mark.parametrize("node", [work_units, moved, shared])
@pytest.mark.parametrize("apply_first", [True, False])
def test_in_either_order_the_image_is_that_of_one_gpu(
    comfy, loaded, fresh, passes, node, apply_first
):
    def apply(model: Any) -> Any:
        return comfy.run("HyperNoise_Apply", model=model, hypernoise=fresh, strength=1.0)[0]

    def sample(model: Any) -> torch.Tensor:
        return comfy.sample(model, loaded.prompt, loaded.latent, steps=2, cfg=2.0)

    expected = sample(apply(loaded.model))
    model = node(apply(loaded.model)) if apply_first else apply(node(loaded.model))
    fresh.cache._entries.clear()
    found = sample(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, sample(loaded.model), atol=1e-2)

    assert len(passes) == 2
    (_, part, _) = passes[-1]
    assert part.hypernoise.patcher.load_device == model.load_device
    if node is not work_units:
        assert model.load_device == SECOND
        assert (model.model is loaded.model.model) == (node is shared)
    else:
        (clone,) = model.get_additional_models_with_key("multigpu")
        assert clone.load_device == SECOND and clone.model is not loaded.model.model
        (beside,) = clone.get_additional_models_with_key(comfy.ours("nodes.comfy_model").KEY)
        assert beside.load_device == SECOND and beside.model is not fresh.patcher.model


def test_a_lora_on_the_model_is_not_doubled_in_the_copy(comfy, loaded):
    """The copy is loaded anew, not taken from weights that may be patched."""
    from comfy.model_management import load_models_gpu

    weight = "diffusion_model.proj_out.weight"
    original = loaded.network.proj_out.weight.clone()
    patched = loaded.model.clone()
    patched.add_patches({weight: ("diff", (torch.ones_like(original),))})
    load_models_gpu([patched])
    copied = moved(patched)
    load_models_gpu([copied])
    assert torch.equal(copied.model.diffusion_model.proj_out.weight, original + 1)


def test_clip_vae_hypernetwork_and_reward_are_made_again_with_weights_of_their_own(comfy, loaded):
    reward = comfy.run("HyperNoise_LoadReward", reward="tiny-preference (embedded)", weight=1.0)[0]
    patchers = {
        "clip": loaded.clip.patcher,
        "vae": loaded.vae.patcher,
        "hypernetwork": loaded.hypernoise.patcher,
        **reward.patchers,
    }
    assert len(patchers) == 4
    for name, patcher in patchers.items():
        again = moved(patcher)
        assert again.load_device == SECOND
        weights, own = (list(each.model.state_dict().values()) for each in (patcher, again))
        assert weights and all(map(torch.equal, weights, own)), name
        assert not {each.data_ptr() for each in weights} & {each.data_ptr() for each in own}, name


def test_the_vae_decodes_on_the_selected_device(comfy, loaded):
    """As Select VAE Device puts it together."""
    vae = copy.copy(loaded.vae)
    vae.patcher = moved(vae.patcher)
    vae.first_stage_model, vae.device = vae.patcher.model, SECOND
    latents = {"samples": torch.ones(1, vae.latent_channels, 8, 8)}
    decode = comfy.nodes.VAEDecode().decode
    assert torch.equal(decode(vae, latents)[0], decode(loaded.vae, latents)[0])


def test_the_clip_encodes_on_the_selected_device(comfy, loaded):
    """As Select CLIP Device puts it together."""
    clip = loaded.clip.clone()
    clip.patcher = moved(clip.patcher)
    used = []
    clip.patcher.model.text_encoder.register_forward_hook(lambda *_: used.append("copy"))
    [[embeddings, _]] = comfy.nodes.CLIPTextEncode().encode(clip, "three green triangles")[0]
    assert used == ["copy"]
    assert torch.equal(embeddings, loaded.prompt[0][0])
