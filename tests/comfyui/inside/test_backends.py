"""Models in other forms: quantised, compiled, with LoRAs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hypernoise.tests.comfyui import stand_ins


@pytest.fixture
def flux(stand_in) -> Callable[..., tuple[Any, Any, list]]:
    """Builds a FLUX stand-in, always with the same weights: (MODEL, HYPERNOISE, CONDITIONING)."""

    def build(dtype: torch.dtype = torch.float32) -> tuple[Any, Any, list]:
        built = stand_in("flux", dtype=dtype)
        return built.model, built.hypernoise, built.positive

    return build


@pytest.fixture
def delta(comfy):
    """The change of a fixed noise by a model with hypernetworks."""

    def run(model: Any, positive: list) -> torch.Tensor:
        noise = torch.randn(
            1, *stand_ins.LATENTS["flux"], generator=torch.Generator().manual_seed(3)
        )
        return comfy.ours("nodes.comfy_model").modulated_noise(model, positive, noise, 0) - noise

    return run


def apply(comfy, model: Any, hypernoise: Any) -> Any:
    return comfy.run("HyperNoise_Apply", model=model, hypernoise=hypernoise, strength=1.0)[0]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


class Dequantising(torch.nn.Module):
    """A layer as ComfyUI-GGUF has them: weights in another form, restored in each forward.

    Reading `weight` fails, as it is of no use where the weights are quantised.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.scale = layer.weight.abs().amax(1, keepdim=True) / 127
        self.quantised = (layer.weight / self.scale).round().to(torch.int8)
        self.bias = layer.bias

    @property
    def weight(self) -> torch.Tensor:
        raise RuntimeError("the weight of a quantised layer was read")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.quantised.to(x) * self.scale.to(x), self.bias)


def test_layers_that_dequantise_in_forward(comfy, flux, delta):
    model, hypernoise, positive = flux()
    exact = delta(apply(comfy, model, hypernoise), positive)
    model, hypernoise, positive = flux()
    modulated = apply(comfy, model, hypernoise)
    network = model.model.diffusion_model
    layers = [name for name, m in network.named_modules() if isinstance(m, torch.nn.Linear)]
    for name in layers:
        parent, _, child = name.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, child, Dequantising(getattr(owner, child)))
    assert len(layers) > 10
    assert 0 < error(delta(modulated, positive), exact) < 0.05


def test_fp8_weights(comfy, flux, delta):
    model, hypernoise, positive = flux()
    exact = delta(apply(comfy, model, hypernoise), positive)
    model, hypernoise, positive = flux(torch.float8_e4m3fn)
    assert model.model.diffusion_model.final_layer.linear.weight.dtype == torch.float8_e4m3fn
    assert 0 < error(delta(apply(comfy, model, hypernoise), positive), exact) < 0.2


@pytest.mark.parametrize("compiled_first", [True, False])
def test_the_compile_node_before_and_after(comfy, flux, delta, compiled_first):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, hypernoise, positive = flux()
    exact = delta(apply(comfy, model, hypernoise), positive)
    model, hypernoise, positive = flux()
    if compiled_first:
        set_torch_compile_wrapper(model, backend="eager")
        modulated = apply(comfy, model, hypernoise)
    else:
        modulated = apply(comfy, model, hypernoise)
        set_torch_compile_wrapper(modulated, backend="eager")
    plain_latent = {"samples": torch.zeros(1, *stand_ins.LATENTS["flux"])}
    for _ in range(2):  # compiled code of the first run must not see or lack hooks in the second
        latents = comfy.sample(modulated, positive, plain_latent)
    assert error(delta(modulated, positive), exact) < 1e-5
    fresh_model, hypernoise, positive = flux()
    expected = comfy.sample(apply(comfy, fresh_model, hypernoise), positive, plain_latent)
    assert error(latents, expected) < 1e-5


def test_loras_on_the_model_take_part(comfy, flux, delta):
    model, hypernoise, positive = flux()
    plain = delta(apply(comfy, model, hypernoise), positive)
    patched = model.clone()
    key = "diffusion_model.double_blocks.0.img_mlp.0.weight"
    weight = model.model.state_dict()[key]
    change = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(6))
    patched.add_patches({key: ("diff", (change,))})
    found = delta(apply(comfy, patched, hypernoise), positive)
    other, hypernoise, positive = flux()
    other.model.diffusion_model.double_blocks[0].img_mlp[0].weight.data += change
    assert error(found, delta(apply(comfy, other, hypernoise), positive)) < 1e-5
    assert error(found, plain) > 1e-3


def test_a_network_without_the_layers_is_named(comfy, flux):
    """As nunchaku's: one fused module in place of the blocks."""
    model, hypernoise, _ = flux()

    class ComfyFluxWrapper(torch.nn.Module):
        pass

    model.model.diffusion_model = ComfyFluxWrapper()
    with pytest.raises(ValueError, match="random: .*ComfyFluxWrapper"):
        apply(comfy, model, hypernoise)


def test_a_model_that_is_only_partly_on_the_device(comfy, flux, delta, monkeypatch):
    """As with --lowvram: most layers fetch their weights, LoRAs among them, when they run."""
    from comfy.model_patcher import ModelPatcher

    key = "diffusion_model.double_blocks.0.img_attn.proj.weight"

    def modulated() -> tuple[Any, list]:
        model, hypernoise, positive = flux()
        patched = model.clone()
        shape = model.model.state_dict()[key].shape
        change = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(6))
        patched.add_patches({key: ("diff", (change,))})
        return apply(comfy, patched, hypernoise), positive

    model, positive = modulated()
    exact = delta(model, positive)
    load = ModelPatcher.partially_load

    def little_memory(self, device, extra_memory=0, force_patch_weights=False):
        if type(self) is type(model):
            extra_memory = self.model_size() // 3
        return load(self, device, extra_memory, force_patch_weights)

    monkeypatch.setattr(ModelPatcher, "partially_load", little_memory)
    model, positive = modulated()
    found = delta(model, positive)
    network = model.model.diffusion_model
    assert model.model.model_lowvram
    fetching = [m for m in network.modules() if hasattr(m, "prev_comfy_cast_weights")]
    assert len(fetching) > 10 and network.double_blocks[0].img_attn.proj in fetching
    assert error(found, exact) < 1e-5
    assert not any(module._forward_hooks for module in network.modules())
