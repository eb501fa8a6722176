"""Apply Noise Hypernetwork: what it does to the noise, and that it leaves no trace."""

import copy
import dataclasses
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hypernoise.tests.comfyui.stand_ins import OTHER
from hypernoise.tests.trust.state import State

IMAGE = {"samples": torch.full((2, 16, 8, 8), 0.3)}  # a LATENT that is not empty


def states(network) -> list[torch.Tensor]:
    return [weight.clone() for weight in network.state_dict().values()]


def gradients(network) -> list[bool]:
    """Which of its parameters want one."""
    return [parameter.requires_grad for parameter in network.parameters()]


def load_other(comfy):
    """Another hypernetwork, without anything remembered."""
    return comfy.run("HyperNoise_LoadHypernetwork", hypernetwork=OTHER)[0]


def hook_count(network) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()
    )


@pytest.fixture
def apply(comfy):
    def run(model, hypernoise, strength=1.0, **options):
        return comfy.run(
            "HyperNoise_Apply", model=model, hypernoise=hypernoise, strength=strength, **options
        )[0]

    return run


@pytest.fixture
def deltas(comfy, loaded, monkeypatch):
    """Records (noise, delta) of each run that modulates."""
    seen = []
    wrapper = comfy.ours("nodes.comfy_model").NoiseModulation
    original = wrapper.delta

    def recording(self, run):
        delta = original(self, run)
        if delta is not None:
            seen.append((run.noise.clone(), delta.clone()))
        return delta

    monkeypatch.setattr(wrapper, "delta", recording)
    return seen


def test_strength_zero_returns_the_model_itself(apply, loaded):
    assert apply(loaded.model, loaded.hypernoise, 0.0) is loaded.model


def test_weights_and_hooks_are_as_before_and_the_input_model_is_untouched(
    comfy, apply, loaded, fresh
):
    plain = comfy.sample(loaded.model, loaded.prompt, loaded.latent)
    before = states(loaded.network)
    modulated = apply(loaded.model, fresh)
    changed = comfy.sample(modulated, loaded.prompt, loaded.latent)
    assert not torch.equal(changed, plain)
    assert all(map(torch.equal, states(loaded.network), before))
    assert hook_count(loaded.network) == 0
    assert torch.equal(comfy.sample(loaded.model, loaded.prompt, loaded.latent), plain)


@pytest.mark.parametrize("interrupt", [False, True], ids=["error", "interrupt"])
@pytest.mark.parametrize("in_pass", [1, 2])
def test_no_trace_is_left_after_a_pass_broke_off(
    comfy, apply, loaded, fresh, monkeypatch, interrupt, in_pass
):
    """In the middle of a layer: by an error, or by the interrupt button, whose exception is none.

    Of two hypernetworks either one's pass may be it.
    """
    import comfy.model_management as management

    other = load_other(comfy)
    model = apply(apply(loaded.model, fresh), other, 0.5)
    expected = comfy.sample(model, loaded.prompt, loaded.latent)
    for hypernoise in (fresh, other):
        hypernoise.cache._entries.clear()
    layer = loaded.network.transformer_blocks[1].attn1.to_q
    forward, calls = layer.forward, []

    def break_off(x):
        calls.append(x)
        if len(calls) < in_pass:
            return forward(x)
        if interrupt:
            management.interrupt_current_processing()
            management.throw_exception_if_processing_interrupted()
        raise RuntimeError("broken")

    sampling = loaded.model.model.model_sampling
    modules = (loaded.network, fresh.hypernetwork, other.hypernetwork)
    before = [(State.of(module), gradients(module)) for module in modules]
    monkeypatch.setattr(layer, "forward", break_off)
    kind = management.InterruptProcessingException if interrupt else RuntimeError
    with pytest.raises(kind):
        comfy.sample(model, loaded.prompt, loaded.latent)
    monkeypatch.undo()
    assert len(calls) == in_pass
    for module, (state, wanted) in zip(modules, before, strict=True):
        state.check(module)
        assert gradients(module) == wanted
    assert loaded.model.model.model_sampling is sampling
    assert torch.equal(comfy.sample(model, loaded.prompt, loaded.latent), expected)


def test_hypernetworks_in_a_row_add_up_on_the_original_noise(comfy, apply, loaded, deltas):
    both = apply(apply(loaded.model, loaded.hypernoise, 0.5), loaded.other, -2.0)
    twice = apply(apply(loaded.model, loaded.hypernoise, 0.25), loaded.hypernoise, 0.75)
    single = (apply(loaded.model, loaded.hypernoise), apply(loaded.model, loaded.other))
    for model in (*single, both, twice):
        comfy.sample(model, loaded.prompt, loaded.latent)
    (noise, first), (_, second), (same_noise, total), (_, halves) = deltas
    assert torch.equal(noise, same_noise)
    torch.testing.assert_close(halves, first, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, 0.5 * first - 2.0 * second, rtol=1e-5, atol=1e-5)


def test_delta_is_the_core_s(comfy, apply, loaded, deltas, models):
    from diffusers import SanaSprintPipeline

    from hypernoise.hypernoise_core.adapter import load_adapter
    from hypernoise.hypernoise_core.families import get_family
    from hypernoise.hypernoise_core.hypernetwork import predict_change
    from hypernoise.tests.comfyui.stand_ins import FILE

    comfy.sample(apply(loaded.model, loaded.hypernoise), loaded.prompt, loaded.latent)
    noise, delta = (tensor.cpu() for tensor in deltas[0])
    pipeline = SanaSprintPipeline.from_pretrained(models.folder_path)
    conditioning = get_family("sana_sprint").encode(pipeline, ["three green triangles"] * 2)
    reference = predict_change(
        load_adapter(models.adapter(FILE)), pipeline.transformer, noise, conditioning
    ).delta
    assert (delta - reference).norm() / reference.norm() < 1e-5


def test_patches_of_the_sampling_run_do_not_see_the_pass(comfy, apply, loaded, fresh):
    """Caches such as EasyCache would remember the hypernetwork's pass as a step."""
    calls = []
    model = apply(loaded.model, fresh)

    def wrapper(apply_model, args):
        calls.append(args["timestep"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(wrapper)
    comfy.sample(model, loaded.prompt, loaded.latent, steps=2)
    assert len(calls) == 2


@pytest.mark.parametrize("replaces_noise", [False, True])
def test_in_an_area_without_a_prompt_there_is_no_delta(
    comfy, apply, loaded, fresh, deltas, replaces_noise
):
    """There f must be 0, not the noise itself, nor nothing in the noise's place."""
    hypernetwork = fresh.hypernetwork
    hypernetwork.metadata = dataclasses.replace(
        hypernetwork.metadata, replaces_noise=replaces_noise
    )
    area = {**loaded.prompt[0][1], "area": (8, 4, 0, 0)}  # the left half of 8 x 8
    comfy.sample(apply(loaded.model, fresh), [[loaded.prompt[0][0], area]], loaded.latent)
    ((_, delta),) = deltas
    assert torch.count_nonzero(delta[..., 4:]) == 0
    assert delta[..., :4].abs().mean() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denoise": 0.5}, "sampling starts at sigma 0.5"),
        ({"positive": []}, "no positive conditioning"),
        ({"start_percent": 0.2}, "no prompt is active at sigma 1, where sampling starts"),
        ({"add_noise": "disable"}, "the sampler adds no noise"),
    ],
)
def test_cases_where_the_noise_is_left_alone(
    comfy, apply, loaded, deltas, caplog, options, message
):
    model = apply(loaded.model, loaded.hypernoise)
    caplog.set_level(logging.WARNING, "hypernoise")
    for _ in range(2):
        if "add_noise" in options:
            comfy.nodes.KSamplerAdvanced().sample(
                model, "disable", 3, 1, 1.0, "euler", "simple", loaded.prompt, loaded.prompt,
                IMAGE, 0, 10000, "disable",
            )  # fmt: skip
        else:
            later = [[each, {**extra, **options}] for each, extra in loaded.prompt]
            cond = options.get("positive", later)
            comfy.sample(model, cond, IMAGE, denoise=options.get("denoise", 1.0))
    assert deltas == []
    assert caplog.text.count(message) == 1  # once, not for every image


@pytest.mark.parametrize("start", [0.9999, 0.9968, 0.5])
def test_on_an_empty_latent_sampling_starts_from_noise_alone_at_any_sigma(
    comfy, apply, loaded, deltas, caplog, start
):
    """As with OptimalSteps or Ideogram 4's scheduler; the sampler scales noise and change."""
    model = apply(loaded.model, loaded.hypernoise)
    caplog.set_level(logging.INFO, "hypernoise")
    comfy.sample(model, loaded.prompt, loaded.latent)
    assert caplog.text == ""
    for _ in range(2):
        sample_from(model, loaded, start, loaded.latent)
    (_, full), *others = deltas
    assert len(others) == 2
    assert all(torch.equal(delta, full) for _, delta in others)
    said = (
        f"is used in full: sampling starts at sigma {start} instead of 1, but the latent is empty"
    )
    assert caplog.text.count(said) == 1
    sample_from(model, loaded, start, IMAGE)
    assert len(deltas) == 3
    assert f"is not used: sampling starts at sigma {start}" in caplog.text


def sample_from(model, loaded, start: float, latent: dict) -> torch.Tensor:
    """SamplerCustom with a first sigma."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([start, start / 2, 0.0])
    return SamplerCustom.execute(
        model, True, 3, 1.0, loaded.prompt, loaded.prompt, sampler, sigmas, latent
    ).args[0]["samples"]


def test_a_prompt_that_ends_before_full_noise_does_not_count_and_one_that_holds_does(
    comfy, apply, loaded, deltas
):
    (embeddings, extra) = loaded.prompt[0]
    other = comfy.nodes.CLIPTextEncode().encode(loaded.clip, "one white square")[0]
    first = [embeddings, {**extra, "start_percent": 0.0, "end_percent": 0.5}]
    second = [other[0][0], {**other[0][1], "start_percent": 0.5, "end_percent": 1.0}]
    model = apply(loaded.model, loaded.hypernoise)
    comfy.sample(model, loaded.prompt, loaded.latent)
    comfy.sample(model, [first, second], loaded.latent)
    comfy.sample(model, other, loaded.latent)
    sample_from(model, loaded_with(loaded, [first, second]), 0.25, loaded.latent)
    (_, of_first), (_, at_full), (_, of_second), (_, at_quarter) = deltas
    assert torch.equal(at_full, of_first)
    assert torch.equal(at_quarter, of_second) and not torch.allclose(of_first, of_second, atol=1e-3)


def loaded_with(loaded, prompt: list):
    return dataclasses.replace(loaded, prompt=prompt)


def test_training_nodes_of_comfyui_pass_through(comfy, apply, loaded, deltas, monkeypatch, caplog):
    monkeypatch.setattr("comfy.model_management.in_training", True)
    comfy.sample(apply(loaded.model, loaded.hypernoise), loaded.prompt, loaded.latent)
    assert deltas == [] and "is not used" not in caplog.text


@pytest.mark.parametrize("shape", [(1, 1, 2048), (1, 16, 3, 8, 8)])
def test_latents_of_video_or_packed_ones_are_refused(comfy, apply, loaded, shape):
    from types import SimpleNamespace

    ours = comfy.ours("nodes.comfy_model")
    model = apply(loaded.model, loaded.hypernoise)
    (modulation,) = model.get_wrappers("sampler_sample", ours.KEY)
    guider = SimpleNamespace(
        inner_model=loaded.model.model, conds={"positive": [{}]}, model_patcher=model
    )
    with pytest.raises(ValueError, match=f"this latent has {len(shape)} dimensions"):
        modulation(None, guider, torch.tensor([1.0, 0.0]), {}, None, torch.ones(shape))


def test_a_model_without_the_layers_is_refused(comfy, apply, loaded):
    wrong = comfy.run("HyperNoise_LoadHypernetwork", hypernetwork="flux.safetensors")[0]
    with pytest.raises(ValueError, match="flux"):
        apply(loaded.model, wrong)


def test_a_layer_that_comfyui_cuts_otherwise_is_named(comfy, apply, stand_in, monkeypatch):
    """As another version may: no table of this one cuts a layer along its inputs."""
    case = stand_in("flux")
    layer, place = next(iter(case.hypernoise.hypernetwork.layer_names)), "diffusion_model.img_in"
    table = {f"transformer.{layer}": (f"{place}.weight", (1, 0, 4))}
    monkeypatch.setattr("comfy.lora.model_lora_keys_unet", lambda model, keys: table)
    with pytest.raises(ValueError, match=f"random: .*layer {layer} in {place}.* not supported"):
        apply(case.model, case.hypernoise)


def test_the_delta_is_computed_once_while_noise_prompt_and_model_stay(
    comfy, apply, loaded, fresh, passes
):
    model = apply(loaded.model, fresh)
    first = comfy.sample(model, loaded.prompt, loaded.latent)
    comfy.sample(model, loaded.prompt, loaded.latent, steps=3, cfg=2.0)
    comfy.sample(apply(loaded.model, fresh, 0.5), loaded.prompt, loaded.latent)
    assert len(passes) == 1
    assert torch.equal(comfy.sample(model, loaded.prompt, loaded.latent), first)
    comfy.sample(model, loaded.prompt, loaded.latent, seed=4)
    assert len(passes) == 2


def test_another_prompt_or_patched_weights_are_never_served_from_memory(
    comfy, apply, loaded, fresh, passes
):
    other = comfy.nodes.CLIPTextEncode().encode(loaded.clip, "one white square")[0]
    comfy.sample(apply(loaded.model, fresh), loaded.prompt, loaded.latent)
    comfy.sample(apply(loaded.model, fresh), other, loaded.latent)
    patched = loaded.model.clone()
    weight = "diffusion_model.proj_out.weight"
    patched.add_patches({weight: ("diff", (torch.ones_like(loaded.network.proj_out.weight),))})
    comfy.sample(apply(patched, fresh), loaded.prompt, loaded.latent)
    assert len(passes) == 3
    for _ in range(2):  # another object each time, whatever address it gets
        replaced = loaded.model.clone()
        sampling = copy.deepcopy(loaded.model.get_model_object("model_sampling"))
        replaced.add_object_patch("model_sampling", sampling)
        comfy.sample(apply(replaced, fresh), loaded.prompt, loaded.latent)
        del replaced, sampling
    assert len(passes) == 5


def test_the_same_noise_in_another_shape_is_another_noise(comfy, apply, loaded, fresh, passes):
    """Of one seed, a portrait and a landscape hold the same numbers."""
    model, channels = apply(loaded.model, fresh), loaded.latent["samples"].shape[1]
    shapes = [(1, channels, 4, 2), (1, channels, 2, 4)]
    tall, wide = (
        comfy.sample(model, loaded.prompt, {**loaded.latent, "samples": torch.zeros(shape)})
        for shape in shapes
    )
    assert len(passes) == 2
    assert tall.shape[2:] == wide.shape[:1:-1] and tall.shape != wide.shape


def test_the_delta_that_was_not_used_for_longest_is_forgotten(comfy, apply, loaded, fresh, passes):
    """As a user goes through seeds and back: the last ones are all remembered."""
    model = apply(loaded.model, fresh)

    def passes_of(*seeds: int) -> int:
        passes.clear()
        for seed in seeds:
            comfy.sample(model, loaded.prompt, loaded.latent, seed=seed)
        return len(passes)

    assert passes_of(*range(8)) == 8
    assert passes_of(0) == 0
    assert passes_of(8) == 1
    assert passes_of(8, 7, 6, 5, 4, 3, 2, 0) == 0
    assert passes_of(1) == 1


def test_what_cannot_be_compared_in_a_prompt_is_never_taken_for_known(
    comfy, apply, loaded, fresh, passes
):
    """Objects of nodes that we do not know may hold anything, and may have changed."""
    model = apply(loaded.model, fresh)
    for thing in (object(), {"in": [object()]}, {1, 2}):
        told = [[each, {**extra, "of_another_node": thing}] for each, extra in loaded.prompt]
        passes.clear()
        first = comfy.sample(model, told, loaded.latent)
        assert torch.equal(comfy.sample(model, told, loaded.latent), first)
        assert len(passes) == 2


def test_the_noise_prompt_is_read_by_the_hypernetwork_alone(comfy, apply, loaded, deltas, models):
    other = comfy.nodes.CLIPTextEncode().encode(loaded.clip, "one white square")[0]
    plain, told = (
        apply(loaded.model, loaded.hypernoise, **options)
        for options in ({}, {"noise_prompt": other})
    )
    image = comfy.sample(plain, loaded.prompt, loaded.latent)
    of_other = comfy.sample(plain, other, loaded.latent)
    mixed = comfy.sample(told, loaded.prompt, loaded.latent)
    (_, own), (_, others), (noise, mixed_delta) = deltas
    torch.testing.assert_close(mixed_delta, others)
    assert not torch.allclose(mixed_delta, own, atol=1e-3)
    assert not torch.equal(mixed, image) and not torch.equal(mixed, of_other)


@pytest.fixture
def lora(loaded) -> dict[str, torch.Tensor]:
    """A fine-tune of one layer, strong enough that its effect is plain to see."""
    layer, generator = "diffusion_model.transformer_blocks.0.attn1.to_q", torch.Generator()
    out, features = loaded.network.transformer_blocks[0].attn1.to_q.weight.shape
    generator.manual_seed(9)
    return {
        f"{layer}.lora_up.weight": torch.randn(out, 2, generator=generator),
        f"{layer}.lora_down.weight": torch.randn(2, features, generator=generator),
    }


@pytest.mark.parametrize("twice", [False, True], ids=["one-hypernetwork", "two"])
@pytest.mark.parametrize("on_positive", [False, True])
def test_a_lora_hook_on_the_noise_prompt_acts_in_the_pass_alone(
    comfy, apply, loaded, deltas, lora, on_positive, twice
):
    """As Create Hook LoRA with Cond Set Props makes it; the same hook may sit on the positive."""
    from comfy.hooks import create_hook_lora
    from comfy.sample import sample
    from comfy.sd import load_lora_for_models

    hooks = create_hook_lora(lora, 1.0, 0.0)
    hooked = [[embeddings, {**extra, "hooks": hooks}] for embeddings, extra in loaded.prompt]
    positive = hooked if on_positive else loaded.prompt
    before = states(loaded.network)
    model = apply(loaded.model, loaded.hypernoise, noise_prompt=hooked)
    if twice:
        model = apply(model, loaded.other, noise_prompt=hooked)
    found = comfy.sample(model, positive, loaded.latent, steps=2)
    assert all(map(torch.equal, states(loaded.network), before))

    with_lora, _ = load_lora_for_models(loaded.model, None, lora, 1.0, 0.0)
    tuned, plain = (apply(source, loaded.hypernoise) for source in (with_lora, loaded.model))
    if twice:
        tuned, plain = apply(tuned, loaded.other), apply(plain, loaded.other)
    for source in (tuned, plain):
        comfy.sample(source, loaded.prompt, loaded.latent)
    (noise, of_hook), (_, of_lora), (_, without) = deltas
    torch.testing.assert_close(of_hook, of_lora, rtol=1e-4, atol=1e-5)
    assert (of_hook - without).norm() / without.norm() > 0.05

    expected = sample(
        loaded.model, noise + of_lora, 2, 1.0, "euler", "simple", positive, positive,
        torch.zeros_like(noise), seed=3,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def with_control_net(comfy, case) -> list:
    """The stand-in's prompt behind Apply ControlNet: ComfyUI's own, of the stand-in's size."""
    from comfy.cldm.cldm import ControlNet as Network
    from comfy.controlnet import ControlNet

    config = case.model.model.model_config
    sizes = {k: v for k, v in config.unet_config.items() if k != "out_channels"}
    network = Network(hint_channels=3, operations=config.custom_operations, **sizes)
    control_net = ControlNet(randomised(network), load_device=torch.device("cpu"))
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(8))
    return comfy.nodes.ControlNetApply().apply_controlnet(case.positive, control_net, image, 1.0)[0]


def with_gligen(comfy, case) -> list:
    """The stand-in's prompt behind GLIGENTextBoxApply: one box with a text of its own."""
    from comfy.gligen import GatedSelfAttentionDense, Gligen, PositionNet
    from comfy.model_patcher import ModelPatcher

    width, device = case.positive[0][0].shape[-1], torch.device("cpu")
    fuser = GatedSelfAttentionDense(32, width, 4, 8)
    gligen = Gligen([randomised(fuser)] * 8, randomised(PositionNet(width, width)), width)
    box = (torch.ones(1, width), 4, 4, 2, 2)
    ((embeddings, extra),) = case.positive
    return [
        [embeddings, {**extra, "gligen": ("position", ModelPatcher(gligen, device, device), [box])}]
    ]


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Such that it has an effect: some of its weights are zero at first, some not even that."""
    generator = torch.Generator().manual_seed(7)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return network.requires_grad_(False).eval()


@pytest.mark.parametrize("controlled", [with_control_net, with_gligen])
def test_controls_on_the_prompt_act_on_the_image_alone(comfy, apply, stand_in, passes, controlled):
    """A hypernetwork is trained without them, so the change of the noise is that without them."""
    case = stand_in("sd_turbo")
    positive = controlled(comfy, case)
    empty = {"samples": torch.zeros_like(case.noise)}
    plain, steered = (comfy.sample(case.model, each, empty) for each in (case.positive, positive))
    assert (steered - plain).norm() / plain.norm() > 0.01
    model = apply(case.model, case.hypernoise)
    modulated = []
    for prompt in (case.positive, positive):
        case.hypernoise.cache._entries.clear()
        ours = comfy.ours("nodes.comfy_model")
        modulated.append(ours.modulated_noise(model, prompt, case.noise, 0))
    assert len(passes) == 2
    assert torch.equal(*modulated) and not torch.equal(modulated[0], case.noise)


def test_two_prompts_are_weighted_as_the_sampler_weights_them(comfy, apply, loaded, deltas):
    other = comfy.nodes.CLIPTextEncode().encode(loaded.clip, "one white square")[0]
    weak = [[other[0][0], {**other[0][1], "strength": 0.25}]]
    model = apply(loaded.model, loaded.hypernoise)
    for prompt in (loaded.prompt, other, loaded.prompt + weak):
        comfy.sample(model, prompt, loaded.latent)
    (_, first), (_, second), (_, both) = deltas
    torch.testing.assert_close(both, (first + 0.25 * second) / 1.25, rtol=1e-4, atol=1e-5)


def test_at_partial_noise_the_change_can_be_scaled_by_sigma(comfy, apply, loaded, deltas, caplog):
    ours = comfy.ours("nodes.comfy_model")
    comfy.sample(apply(loaded.model, loaded.hypernoise), loaded.prompt, loaded.latent)
    model = apply(loaded.model, loaded.hypernoise, at_partial_noise=ours.SCALE)
    caplog.set_level(logging.INFO, "hypernoise")
    comfy.sample(model, loaded.prompt, IMAGE, denoise=0.5)
    (noise, full), (same, half) = deltas
    assert torch.equal(noise, same)
    torch.testing.assert_close(half, 0.5 * full)
    assert "its change multiplied by 0.5" in caplog.text


def test_guidance_above_one_costs_no_second_pass(comfy, apply, loaded, fresh, passes):
    comfy.sample(apply(loaded.model, fresh), loaded.prompt, loaded.latent, cfg=3.0)
    assert len(passes) == 1


def test_a_layer_that_is_never_called_is_reported(comfy, apply, loaded, fresh, monkeypatch):
    """As with fused kernels: the layers are there, but what holds them reads their weights."""
    block = loaded.network.transformer_blocks[0].attn1

    def fused(x, *args, **options):
        return block.to_out[0](torch.nn.functional.linear(x, block.to_q.weight))

    monkeypatch.setattr(block, "forward", fused)
    plain = comfy.sample(loaded.model, loaded.prompt, loaded.latent)
    message = r"without calling 3 of its layers \(for example transformer_blocks.0.attn1.to_k\)"
    with pytest.raises(ValueError, match=message):
        comfy.sample(apply(loaded.model, fresh), loaded.prompt, loaded.latent)
    assert torch.equal(comfy.sample(loaded.model, loaded.prompt, loaded.latent), plain)


def test_threads_that_sample_one_model_get_the_images_of_one_thread(comfy, apply, stand_in):
    from comfy import sample as sampling

    run = stand_in("sd_turbo")
    model, latent = apply(run.model, run.hypernoise), torch.zeros_like(run.noise)
    layers = [module for module in run.model.model.diffusion_model.modules() if not module._modules]
    for layer in layers:  # between any two of them another thread may run
        layer.register_forward_pre_hook(lambda *_: time.sleep(0.0005), prepend=True)

    noises = torch.randn(3, *run.noise.shape)  # KSampler's own come from one global generator

    def sample(noise):
        with torch.inference_mode():
            return sampling.sample(
                model, noise, 1, 1.0, "euler", "simple", run.positive, run.positive, latent
            )

    expected = [sample(noise) for noise in noises]
    run.hypernoise.cache._entries.clear()
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(sample, noises))
    assert all(map(torch.equal, got, expected))
    assert hook_count(run.model.model.diffusion_model) == len(layers)


def test_an_interrupt_in_one_pass_is_heard_before_the_next(comfy, apply, loaded, fresh):
    from comfy import model_management as management

    model, passes = apply(apply(loaded.model, fresh), loaded.other), []

    def press(*_):
        passes.append(1)
        management.interrupt_current_processing()

    handle = loaded.network.register_forward_hook(press)
    try:
        with pytest.raises(management.InterruptProcessingException):
            comfy.sample(model, loaded.prompt, loaded.latent, seed=77)
    finally:
        handle.remove()
        management.interrupt_current_processing(False)
    assert len(passes) == 1
