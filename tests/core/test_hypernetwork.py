"""f on tiny networks of every family: its start, its gradients, and what it leaves behind."""

import copy

import pytest
import torch
from torch import nn

from hypernoise.hypernoise_core.errors import AdapterError
from hypernoise.hypernoise_core.families import get_family
from hypernoise.hypernoise_core.hypernetwork import (
    NoiseHypernetwork,
    modulate,
    noise_penalty,
    predict_change,
    sample_noise,
)


def hook_count(network: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_with_kwargs)
        for m in network.modules()
    )


def test_new_hypernetwork_gives_the_noise_back_bit_for_bit(tiny):
    f = NoiseHypernetwork.initialise(tiny.network, tiny.family, rank=4, alpha=8)
    delta = f(tiny.network, tiny.noise, tiny.conditioning)
    assert torch.count_nonzero(delta) == 0
    assert torch.equal(modulate(tiny.noise, delta), tiny.noise)


def test_new_hypernetwork_is_reproducible_and_gaussian(tiny):
    f, again = (
        NoiseHypernetwork.initialise(
            tiny.network, tiny.family.name, rank=8, alpha=8, generator=torch.manual_seed(3)
        )
        for _ in range(2)
    )
    down = torch.cat([branch.down.flatten() for branch in f.branches.values()])
    assert torch.equal(down, torch.cat([b.down.flatten() for b in again.branches.values()]))
    assert abs(down.std().item() * 8 - 1) < 0.05


def test_it_adapts_every_linear_and_ungrouped_convolution(tiny):
    f = NoiseHypernetwork.initialise(tiny.network, tiny.family, rank=2, alpha=2)
    expected = {
        name
        for name, m in tiny.network.named_modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)
    }
    assert set(f.layer_names) == expected


def test_another_layer_can_be_the_one_that_gives_its_branch_alone(tiny):
    first = next(n for n, m in tiny.network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
    f = NoiseHypernetwork.initialise(
        tiny.network, tiny.family, rank=2, alpha=2, last_layer=first, base_model="some/model"
    )
    seen = []
    with f.attached(tiny.network):
        layer = tiny.network.get_submodule(first)
        handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
        assert tiny.predict().abs().sum() > 0
        handle.remove()
    assert not seen[0].any()
    assert (f.metadata.last_layer, f.metadata.base_model) == (first, "some/model")


def test_depthwise_convolutions_are_adapted_when_asked_for(tiny_sana):
    f = tiny_sana.hypernetwork(adapt_depthwise=True)
    depthwise = f.branches["transformer_blocks.0.ff.conv_depth"]
    assert depthwise.down.shape == (4, 80, 3, 3)
    with torch.no_grad():
        assert f(tiny_sana.network, tiny_sana.noise, tiny_sana.conditioning).abs().max() > 0


def test_initialise_refuses_the_network_of_another_family(tiny):
    for other in {"sana_sprint", "flux", "sd_turbo"} - {tiny.family.name}:
        with pytest.raises(AdapterError, match=other):
            NoiseHypernetwork.initialise(tiny.network, other, rank=2, alpha=2)


def test_f_leaves_the_generator_as_it_was(tiny):
    before = {name: tensor.clone() for name, tensor in tiny.network.state_dict().items()}
    with torch.no_grad():
        output = tiny.predict()
        delta = tiny.hypernetwork()(tiny.network, tiny.noise, tiny.conditioning)
        again = tiny.predict()
    assert delta.shape == tiny.noise.shape
    assert delta.std() > 0
    assert torch.equal(output, again)
    assert hook_count(tiny.network) == 0
    assert all(torch.equal(t, before[n]) for n, t in tiny.network.state_dict().items())


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError])
def test_hooks_are_gone_after_an_interrupt_inside_a_layer(tiny, interrupt):
    f = tiny.hypernetwork()
    layer = tiny.network.get_submodule(f.layer_names[len(f.layer_names) // 2])

    def stop(*_):
        raise interrupt

    handle = layer.register_forward_pre_hook(stop)
    try:
        with pytest.raises(interrupt):
            f(tiny.network, tiny.noise, tiny.conditioning)
    finally:
        handle.remove()
    assert hook_count(tiny.network) == 0


def test_strength_zero_runs_no_pass(tiny):
    class Refusing(nn.Module):
        def forward(self, *_):
            raise AssertionError("strength 0 needs no pass")

    change = predict_change(Refusing(), tiny.network, tiny.noise, tiny.conditioning, strength=0.0)
    assert all(torch.equal(part, torch.zeros_like(tiny.noise)) for part in change)


@pytest.mark.parametrize("strength", [0.5, 1.5, -1.0])
def test_strength_scales_f(tiny, strength):
    f = tiny.hypernetwork()
    with torch.no_grad():
        full = predict_change(f, tiny.network, tiny.noise, tiny.conditioning)
        scaled = predict_change(f, tiny.network, tiny.noise, tiny.conditioning, strength)
    assert torch.equal(scaled.delta, strength * full.delta)
    assert torch.equal(scaled.output, full.output) and torch.equal(full.output, full.delta)


def test_an_f_that_takes_the_noise_s_place_is_the_whole_way_there(tiny):
    f = tiny.hypernetwork(replaces_noise=True)
    with torch.no_grad():
        change = predict_change(f, tiny.network, tiny.noise, tiny.conditioning)
        output = f(tiny.network, tiny.noise, tiny.conditioning)
    assert torch.equal(change.output, output)
    torch.testing.assert_close(modulate(tiny.noise, change.delta), output, rtol=0, atol=1e-5)


def test_the_penalty_is_the_mean_square_of_each_image():
    f = torch.tensor([0.0, 2.0, -3.0]).view(3, 1, 1, 1).expand(3, 4, 5, 6)
    assert noise_penalty(f).tolist() == [0.0, 4.0, 9.0]


def test_f_runs_in_inference_mode_and_can_be_trained_after(tiny):
    f = tiny.hypernetwork()
    with torch.inference_mode():
        inferred = f(tiny.network, tiny.noise, tiny.conditioning)
    trained = f(tiny.network, tiny.noise, tiny.conditioning)
    trained.sum().backward()
    torch.testing.assert_close(inferred, trained.detach())


def test_gradient_reaches_every_factor_and_the_noise(tiny):
    f = tiny.hypernetwork()
    noise = tiny.noise.clone().requires_grad_()
    delta = f(tiny.network, noise, tiny.conditioning)
    latents = tiny.family.denoise(tiny.pipeline, modulate(noise, delta), tiny.conditioning)
    images = tiny.family.decode(tiny.pipeline, latents)
    (images.mean() + noise_penalty(delta).mean()).backward()
    assert noise.grad.abs().sum() > 0
    without = [n for n, p in f.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad is None for p in tiny.network.parameters())


def test_checkpointed_blocks_are_recomputed_with_their_branches(tiny, make_tiny):
    def gradients(case):
        f = tiny.hypernetwork()
        noise = tiny.noise.clone().requires_grad_()
        delta = f(case.network, noise, tiny.conditioning)
        latents = case.family.denoise(case.pipeline, modulate(noise, delta), tiny.conditioning)
        latents.square().sum().backward()
        return [noise.grad, *(p.grad for p in f.parameters())]

    checkpointed = make_tiny(tiny.family.name)
    checkpointed.network.enable_gradient_checkpointing()
    checkpointed.network.train()  # some blocks checkpoint in training only; there is no dropout
    functions = [
        getattr(m, "_gradient_checkpointing_func", None) for m in checkpointed.network.modules()
    ]
    for got, expected in zip(gradients(checkpointed), gradients(tiny), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert hook_count(checkpointed.network) == 0
    assert functions == [
        getattr(m, "_gradient_checkpointing_func", None) for m in checkpointed.network.modules()
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_adapter_on_a_half_precision_network(tiny, make_tiny, dtype):
    half = make_tiny(tiny.family.name)
    half.pipeline.to(dtype)
    f = tiny.hypernetwork()
    with torch.no_grad():
        got = f(half.network, tiny.noise, tiny.conditioning)
        expected = f(tiny.network, tiny.noise, tiny.conditioning)
    assert got.dtype == torch.float32
    assert ((got - expected).norm() / expected.norm()).item() < 30 * torch.finfo(dtype).eps


def test_misfit_names_layers_shapes_and_family(tiny, make_tiny):
    other = make_tiny({"sana_sprint": "sd_turbo"}.get(tiny.family.name, "sana_sprint"))
    with pytest.raises(AdapterError) as caught:
        tiny.hypernetwork().check_fits(other.network)
    message = str(caught.value)
    assert f"looks like {tiny.family.name}" in message
    assert type(other.network).__name__ in message
    assert "has no such layer" in message


def test_misfit_of_another_size_names_both_shapes(tiny_sana):
    f = copy.deepcopy(tiny_sana.hypernetwork())
    for name in ("proj_out", "time_embed.linear"):
        f.branches[name].down = nn.Parameter(torch.zeros(4, 99))
    expected = (
        r"2 of \d+ layers .*\n  time_embed.linear: got A \(4, 99\) .* expected A \(4, 16\) .*"
        r"\n  proj_out: got A \(4, 99\) .* expected A \(4, 16\)"
    )
    with pytest.raises(AdapterError, match=expected):
        f(tiny_sana.network, tiny_sana.noise, tiny_sana.conditioning)


def test_a_copy_is_of_the_same_family(tiny):
    """Families are told apart by their identity."""
    f = tiny.hypernetwork()
    assert copy.deepcopy(f).family is f.family


def test_an_adapter_without_the_last_layer_is_refused(tiny):
    f = tiny.hypernetwork()
    branches = {name: b for name, b in f.branches.items() if name != tiny.family.last_layer}
    with pytest.raises(AdapterError, match=tiny.family.last_layer):
        NoiseHypernetwork(branches, f.metadata)


def test_noise_of_an_image_does_not_depend_on_its_batch():
    batch = sample_noise((4, 6, 6), [5, 6, 7])
    assert torch.equal(batch[1:2], sample_noise((4, 6, 6), [6]))
    assert batch.dtype == torch.float32


def test_noise_in_another_dtype_is_the_same_noise_rounded():
    noise, half = (sample_noise((4, 6, 6), [5], dtype=d) for d in (torch.float32, torch.float16))
    assert torch.equal(half, noise.half())


def test_seeds_that_torch_does_not_take_are_named():
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"seed {seed} is out of range: seeds go from"):
            sample_noise((1, 2, 2), [0, seed])
    assert sample_noise((1, 2, 2), [2**64 - 1, -(2**63)]).isfinite().all()


def test_unknown_family_answers_with_the_known_ones():
    with pytest.raises(ValueError, match="'fluks', choose from sana_sprint, flux, sd_turbo"):
        get_family("fluks")
