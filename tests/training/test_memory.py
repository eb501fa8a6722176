"""Recomputing and not keeping activations: the same gradients from less memory."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from hypernoise.hypernoise_core.families import FAMILIES
from hypernoise.hypernoise_core.hypernetwork import modulate
from hypernoise.tests.core.conftest import Tiny, build_tiny
from hypernoise.training.memory import LiveBytes, checkpoint_activations, save_memory

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"


def medium_dc() -> diffusers.AutoencoderDC:
    """Has the blocks of SANA's: attention, multi-scale convolutions, interpolation."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        decoder_act_fns="silu",
    )
    return vae.eval().requires_grad_(False)


def training_step(tiny: Tiny) -> tuple[list[Tensor], int, int]:
    """Gradients of the adapter, bytes kept after the forward pass, and the most bytes in use."""
    options = {"adapt_depthwise": True} if tiny.family.name == "sana_sprint" else {}
    f = tiny.hypernetwork(**options)
    with LiveBytes() as live:
        noise = modulate(tiny.noise, f(tiny.network, tiny.noise, tiny.conditioning))
        latents = tiny.family.denoise(tiny.pipeline, noise, tiny.conditioning)
        images = tiny.family.decode(tiny.pipeline, latents)
        kept = live.now
        (images * torch.linspace(-1, 1, images.numel()).view_as(images)).sum().backward()
    return [parameter.grad for parameter in f.parameters()], kept, live.peak


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


SAVINGS = {
    "checkpoint": [checkpoint_activations],
    "memsave": [save_memory],
    "both": [save_memory, checkpoint_activations],
}


@pytest.mark.parametrize("saving_by", SAVINGS)
@pytest.mark.parametrize(
    ("name", "vae"), [*((family.name, "own") for family in FAMILIES), ("sana_sprint", "medium")]
)
def test_every_combination_gives_the_same_gradients_from_less_memory(name, vae, saving_by):
    plain, saving = build_tiny(name), build_tiny(name)
    for tiny in (plain, saving):
        if vae == "medium":
            tiny.pipeline.register_modules(vae=medium_dc())
    for save in SAVINGS[saving_by]:
        save(saving.pipeline)
    expected, all_kept, _ = training_step(plain)
    actual, kept, _ = training_step(saving)
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    assert_close(actual, expected, 1e-5)
    assert kept < 0.9 * all_kept


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_recomputing_lowers_the_peak_as_well(name):
    plain, saving = build_tiny(name), build_tiny(name)
    checkpoint_activations(saving.pipeline)
    assert training_step(saving)[2] < training_step(plain)[2]


@pytest.mark.parametrize("vae", ["own", "medium"])
@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_the_decoder_is_recomputed_too(name, vae):
    tiny = build_tiny(name)
    if vae == "medium":
        tiny.pipeline.register_modules(vae=medium_dc())
    latents = tiny.noise.requires_grad_(True)

    def kept() -> int:
        with LiveBytes() as live:
            images = tiny.family.decode(tiny.pipeline, latents)
            return live.now - images.nbytes

    before = kept()
    checkpoint_activations(tiny.pipeline)
    assert kept() < 0.7 * before


def batch_norm() -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(6)
    nn.init.uniform_(layer.weight, 0.5, 2.0)
    nn.init.normal_(layer.bias)
    nn.init.normal_(layer.running_mean)
    nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return layer


LAYERS = {
    "conv": lambda: nn.Conv2d(6, 5, 3, padding=1),
    "conv without bias": lambda: nn.Conv2d(6, 5, 1, bias=False),
    "conv with stride and dilation": lambda: nn.Conv2d(6, 5, 3, 2, 2, 2),
    "conv without padding": lambda: nn.Conv2d(6, 5, 3, padding="valid"),
    "depthwise conv": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "grouped conv": lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "transposed conv": lambda: nn.ConvTranspose2d(6, 5, 3, 2, 1, 1),
    "grouped transposed conv": lambda: nn.ConvTranspose2d(6, 4, 4, 2, 1, groups=2),
    "batch norm": batch_norm,
    "batch norm without affine": lambda: nn.BatchNorm2d(6, affine=False),
    "rms norm": lambda: nn.RMSNorm(8, eps=1e-6),
    "rms norm of diffusers": lambda: DiffusersRMSNorm(8, 1e-6, bias=True),
    "group norm and silu": lambda: nn.Sequential(nn.GroupNorm(3, 6), nn.SiLU()),
    "quick gelu of transformers": QuickGELUActivation,
    "gated feed-forward": lambda: GLUMBConv(6, 5, 2, residual_connection=False),
    "gated feed-forward with norm": lambda: GLUMBConv(6, 6, 2, norm_type="rms_norm"),
}
FALLBACKS = {
    "conv padded to the same size": lambda: nn.Conv2d(6, 5, 3, padding="same"),
    "conv with circular padding": lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"),
    "silu alone": nn.SiLU,
    "silu in place": lambda: nn.Sequential(nn.GroupNorm(3, 6), nn.SiLU(inplace=True)),
    "batch norm in training": lambda: nn.BatchNorm2d(6, track_running_stats=False),
}


def frozen(make, dtype=torch.float32, memory_format=torch.contiguous_format) -> nn.Module:
    torch.manual_seed(0)
    layer = make().eval().requires_grad_(False)
    return layer.to(dtype=dtype, memory_format=memory_format)


def run(layer: nn.Module, features: Tensor) -> tuple[Tensor, Tensor, int]:
    """Output, gradient of the features, and bytes that were kept for it."""
    leaf = features.clone().requires_grad_(True)
    with LiveBytes() as live:
        output = layer(leaf * 1)
        kept = live.now - output.nbytes
        weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        (output * weight).sum().backward()
    return output.detach(), leaf.grad, kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", [*LAYERS, *FALLBACKS])
def test_a_frozen_layer_gives_the_same_output_and_gradient(name, memory_format, dtype):
    layer = frozen((LAYERS | FALLBACKS)[name], dtype, memory_format)
    features = torch.randn(2, 6, 8, 8, dtype=dtype).to(memory_format=memory_format)
    expected_output, expected, all_kept = run(layer, features)
    save_memory(layer)
    output, gradient, kept = run(layer, features)
    assert torch.equal(output, expected_output)
    assert output.stride() == expected_output.stride()
    assert gradient.dtype == expected.dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    assert (gradient - expected).abs().max() <= tolerance * expected.abs().max()
    if name in LAYERS:
        assert kept < all_kept
    else:
        assert kept == all_kept


def test_a_gate_is_not_kept():
    layer = frozen(LAYERS["gated feed-forward"])
    save_memory(layer)
    features = torch.randn(2, 6, 8, 8)
    *_, without = run(layer, features)
    layer.__class__ = GLUMBConv
    *_, with_gate = run(layer, features)
    gate = 2 * 12 * 8 * 8 * 4
    assert with_gate - without == gate


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_train_get_their_gradients(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    saving = copy.deepcopy(layer)
    save_memory(saving)
    features = torch.randn(2, 6, 8, 8)
    run(layer, features)
    run(saving, features)
    expected = [parameter.grad for parameter in layer.parameters()]
    assert_close([parameter.grad for parameter in saving.parameters()], expected, 1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_images_and_names_of_weights_stay_the_same(name, mode):
    tiny = build_tiny(name)
    names = list(tiny.network.state_dict())

    def images() -> Tensor:
        latents = tiny.family.denoise(tiny.pipeline, tiny.noise, tiny.conditioning)
        return tiny.family.decode(tiny.pipeline, latents)

    with mode():
        before = images()
        save_memory(tiny.pipeline)
        checkpoint_activations(tiny.pipeline)
        assert torch.equal(images(), before)
    assert list(tiny.network.state_dict()) == names


def test_saving_twice_is_saving_once():
    tiny = build_tiny("sd_turbo")
    save_memory(tiny.network, tiny.pipeline.vae)
    once = [type(module) for module in tiny.network.modules()]
    save_memory(tiny.pipeline)
    checkpoint_activations(tiny.pipeline)
    forwards = [vars(module).get("forward") for module in tiny.pipeline.vae.modules()]
    checkpoint_activations(tiny.pipeline)
    assert [type(module) for module in tiny.network.modules()] == once
    assert [vars(module).get("forward") for module in tiny.pipeline.vae.modules()] == forwards
    assert any(cls is not nn.Conv2d and issubclass(cls, nn.Conv2d) for cls in once)


@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith(("rms", "quick"))])
def test_a_second_derivative_is_refused(name):
    layer = frozen(LAYERS[name])
    save_memory(layer)
    features = torch.randn(2, 6, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(features).square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Halved(nn.Module):
    """Changes the norm's output before the activation sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.activation = nn.GroupNorm(3, 6), nn.SiLU()

    def forward(self, features: Tensor) -> Tensor:
        return self.activation(self.norm(features).mul_(0.5))


def test_a_norm_whose_output_was_changed_is_not_computed_again():
    layer = frozen(Halved)
    features = torch.randn(2, 6, 8, 8)
    _, expected, _ = run(layer, features)
    save_memory(layer)
    _, gradient, _ = run(layer, features)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_live_bytes_are_what_autograd_saves(name):
    tiny = build_tiny(name)
    f = tiny.hypernetwork()
    own = [*tiny.network.parameters(), *tiny.pipeline.vae.parameters(), *f.parameters()]
    own += [*tiny.network.buffers(), tiny.noise, *tiny.conditioning.values()]
    outside = {tensor.untyped_storage()._cdata for tensor in own}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in outside:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), LiveBytes() as live:
        noise = f(tiny.network, tiny.noise, tiny.conditioning)
        images = tiny.family.decode(
            tiny.pipeline, tiny.family.denoise(tiny.pipeline, noise, tiny.conditioning)
        )
    expected = sum(storage.nbytes() for storage in saved.values())
    assert images.requires_grad
    assert live.now == pytest.approx(expected, rel=0.02)
    assert live.peak >= live.now


def test_live_bytes_forget_what_is_gone():
    with LiveBytes() as live:
        first = torch.zeros(100)
        second = first.view(10, 10)
        assert live.now == 400
        del first
        assert live.now == 400
        third = second + 1
        del second
    assert live.now == third.nbytes == 400
    assert live.peak == 800


def test_the_benchmark_measures_a_step_in_a_process_of_its_own():
    command = [sys.executable, BENCHMARK, "--way", "both", "--size", "64", "--batch", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    sizes = json.loads(result.stdout)
    assert 0 < sizes["kept"] < sizes["peak"]
