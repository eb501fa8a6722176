"""A LoRA on the generator itself: on every layer, in a file that diffusers loads."""

import dataclasses
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from hypernoise.hypernoise_core.adapter import (
    load_adapter,
    load_generator_lora,
    open_adapter,
    save_adapter,
)
from hypernoise.hypernoise_core.errors import AdapterError
from hypernoise.hypernoise_core.generate import generate
from hypernoise.hypernoise_core.generator_lora import (
    GeneratorLora,
    save_generator_lora,
)
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork

RANK = 4


def make_lora(tiny, alpha: float = 6.0) -> GeneratorLora:
    """With random A and B, so that it changes what the network computes."""
    generator = torch.Generator().manual_seed(3)
    lora = GeneratorLora.initialise(
        tiny.network, tiny.family, rank=RANK, alpha=alpha, generator=generator, base_model="a/b"
    )
    with torch.no_grad():
        for branch in lora.branches.values():
            branch.up.normal_(std=0.1, generator=generator)
    return lora


@torch.no_grad()
def images_of(tiny) -> torch.Tensor:
    prompts = ["a", "b", "c"]
    made = generate(
        tiny.pipeline,
        prompts,
        seeds=range(3),
        steps=2,
        height=16,
        width=16,
        conditioning=tiny.conditioning,
    )
    return made.images


def hook_count(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def test_a_new_lora_leaves_the_generator_as_it_is(tiny):
    lora = GeneratorLora.initialise(tiny.network, tiny.family.name, rank=RANK, alpha=8)
    assert {p.dtype for p in lora.parameters()} == {torch.float32}
    plain = images_of(tiny)
    with lora.attached(tiny.network):
        assert torch.equal(images_of(tiny), plain)


def test_it_starts_as_a_noise_hypernetwork_does(tiny):
    options = {"rank": RANK, "alpha": 8}
    lora, f = (
        cls.initialise(tiny.network, tiny.family, generator=torch.manual_seed(1), **options)
        for cls in (GeneratorLora, NoiseHypernetwork)
    )
    assert lora.layer_names == f.layer_names
    for name, branch in f.branches.items():
        assert torch.equal(lora.branches[name].down, branch.down)
        assert not lora.branches[name].up.any()


def test_every_layer_adds_its_branch_also_the_last(tiny, make_tiny):
    lora = make_lora(tiny)
    merged = make_tiny(tiny.family.name)
    for name, branch in lora.branches.items():
        weight = merged.network.get_submodule(name).weight
        change = branch.up.flatten(1) @ branch.down.flatten(1) * branch.scale
        weight.data += change.reshape(weight.shape)
    with torch.no_grad(), lora.attached(tiny.network) as ran:
        got = tiny.predict()
        torch.testing.assert_close(got, merged.predict(), rtol=1e-4, atol=1e-4)
    assert ran == set(lora.layer_names)
    assert hook_count(tiny.network) == 0


def test_gradient_reaches_every_factor_also_through_checkpointed_blocks(tiny, make_tiny):
    def gradients(case):
        lora = make_lora(tiny)
        with lora.attached(case.network):
            latents = case.family.denoise(case.pipeline, tiny.noise, tiny.conditioning)
        case.family.decode(case.pipeline, latents).square().sum().backward()
        return [p.grad for p in lora.parameters()]

    checkpointed = make_tiny(tiny.family.name)
    checkpointed.network.enable_gradient_checkpointing()
    checkpointed.network.train()  # some blocks checkpoint in training only; there is no dropout
    expected = gradients(tiny)
    assert all(gradient.any() for gradient in expected)
    for got, plain in zip(gradients(checkpointed), expected, strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-5)
    assert hook_count(checkpointed.network) == 0


def test_a_misfit_is_named(tiny, make_tiny):
    other = make_tiny({"sana_sprint": "flux"}.get(tiny.family.name, "sana_sprint"))
    with pytest.raises(AdapterError, match=f"looks like {tiny.family.name}"):
        make_lora(tiny).attached(other.network)
    with pytest.raises(AdapterError, match="is not a network of"):
        GeneratorLora.initialise(other.network, tiny.family, rank=2, alpha=2)


def test_depthwise_convolutions_are_refused_before_any_training(tiny, tiny_sana):
    options = {"rank": 2, "alpha": 2, "adapt_depthwise": True}
    with pytest.raises(AdapterError, match=r"depthwise convolution transformer_blocks.0.ff.conv"):
        GeneratorLora.initialise(tiny_sana.network, "sana_sprint", **options)
    if tiny.family is not tiny_sana.family:  # which have none
        GeneratorLora.initialise(tiny.network, tiny.family, **options)


def test_diffusers_makes_the_same_images_from_the_file(tiny, make_tiny, tmp_path):
    pytest.importorskip("peft")
    lora = make_lora(tiny)
    path = save_generator_lora(lora, tmp_path / "lora.safetensors")
    plain = images_of(tiny)
    with lora.attached(tiny.network):
        expected = images_of(tiny)
    assert (expected - plain).abs().max() > 1e-2
    there = make_tiny(tiny.family.name)
    there.pipeline.load_lora_weights(str(path))
    torch.testing.assert_close(images_of(there), expected, rtol=0, atol=1e-5)


def test_diffusers_reads_comfyui_s_names_when_told_the_prefix(tiny_sana, make_tiny, tmp_path):
    pytest.importorskip("peft")
    lora = make_lora(tiny_sana)
    path = save_generator_lora(lora, tmp_path / "lora.safetensors", for_comfyui=True)
    with lora.attached(tiny_sana.network):
        expected = images_of(tiny_sana)
    there = make_tiny("sana_sprint")
    there.network.load_lora_adapter(str(path), prefix="diffusion_model")
    torch.testing.assert_close(images_of(there), expected, rtol=0, atol=1e-5)


def test_one_file_serves_diffusers_and_comfyui_but_for_sana_sprint(tiny, tmp_path):
    lora = make_lora(tiny)
    diffusers = save_generator_lora(lora, tmp_path / "a.safetensors")
    comfyui = save_generator_lora(lora, tmp_path / "b.safetensors", for_comfyui=True)
    is_same = load_file(diffusers).keys() == load_file(comfyui).keys()
    assert is_same == (tiny.family.name != "sana_sprint")


@pytest.mark.parametrize("for_comfyui", [False, True])
def test_a_loaded_lora_computes_the_same_and_can_be_trained(tiny, tmp_path, for_comfyui):
    lora = make_lora(tiny)
    lora.metadata = dataclasses.replace(lora.metadata, training_steps=7, rewards={"hps": 5.0})
    path = save_generator_lora(lora, tmp_path / "lora.safetensors", for_comfyui=for_comfyui)
    with torch.inference_mode():
        loaded = load_generator_lora(path)
    assert loaded.metadata == dataclasses.replace(lora.metadata, alpha=float(RANK))
    assert set(loaded.layer_names) == set(lora.layer_names)
    with torch.no_grad(), lora.attached(tiny.network):
        expected = tiny.predict()
    with loaded.attached(tiny.network):
        got = tiny.predict()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    got.sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_the_file_has_the_dtype_asked_for_and_no_alpha(tiny, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_generator_lora(make_lora(tiny), path, dtype=torch.bfloat16)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all("lora" in key and key.endswith(".weight") for key in tensors)


def test_weights_that_the_dtype_cannot_hold_are_refused(tiny_sana, tmp_path):
    lora = make_lora(tiny_sana)
    lora.branches["proj_out"].up.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"proj_out are too large for torch.float16"):
        save_generator_lora(lora, tmp_path / "lora.safetensors", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_each_loader_refuses_the_other_s_file(tiny, tmp_path):
    lora, f = tmp_path / "lora.safetensors", tmp_path / "f.safetensors"
    save_generator_lora(make_lora(tiny), lora)
    save_adapter(tiny.hypernetwork(), f)
    with pytest.raises(AdapterError, match=r"lora.safetensors: this is a LoRA on the generator"):
        load_adapter(lora)
    with pytest.raises(AdapterError, match=r"f.safetensors: this is a noise hypernetwork"):
        load_generator_lora(f)


def test_either_is_read_by_what_its_file_says(tiny, tmp_path):
    lora, f = tmp_path / "lora.safetensors", tmp_path / "f.safetensors"
    save_generator_lora(make_lora(tiny), lora)
    save_adapter(tiny.hypernetwork(), f)
    assert type(open_adapter(lora)) is GeneratorLora
    assert type(open_adapter(f)) is NoiseHypernetwork
    with pytest.raises(AdapterError, match=r"lora.safetensors: .* its scale, but alpha was"):
        open_adapter(lora, alpha=4)


def test_other_files_are_refused_by_name(tiny_sana, tmp_path):
    with pytest.raises(AdapterError, match=r"there is no adapter at .*gone.safetensors"):
        load_generator_lora(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="one .safetensors file, not as .*lora.bin"):
        save_generator_lora(make_lora(tiny_sana), tmp_path / "lora.bin")
    path = save_generator_lora(make_lora(tiny_sana), tmp_path / "lora.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AdapterError, match="lora.safetensors is damaged"):
        load_generator_lora(path)


def test_a_failed_save_leaves_the_old_file(tiny_sana, tmp_path, monkeypatch):
    path = save_generator_lora(make_lora(tiny_sana), tmp_path / "lora.safetensors")
    before = path.read_bytes()

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_generator_lora(make_lora(tiny_sana, alpha=1.0), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
