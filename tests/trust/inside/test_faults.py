"""Faults and missing memory in a sampling run: the model is as before, the next run is right."""

import gc
import logging
import random
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch

from hypernoise.tests.comfyui import stand_ins
from hypernoise.tests.trust.state import Fault, FaultAt, State, count_tensors, out_of_memory


def apply(comfy, model, hypernoise, strength=1.0, **options):
    return comfy.run(
        "HyperNoise_Apply", model=model, hypernoise=hypernoise, strength=strength, **options
    )[0]


def forget(hypernoise) -> None:
    """The next run makes a pass."""
    hypernoise.cache._entries.clear()


@pytest.fixture
def small_memory(comfy, monkeypatch) -> Callable[[int], list[int]]:
    """`small_memory(n)`: there is memory for a pass of n images; gives the list of all passes."""
    ours = comfy.ours("nodes.comfy_model")
    original, batches = ours._run_network, []

    def limit(images: int) -> list[int]:
        def run(run, part, prompt):
            batches.append(len(run.noise))
            if len(run.noise) > images:
                raise out_of_memory()
            return original(run, part, prompt)

        monkeypatch.setattr(ours, "_run_network", run)
        return batches

    return limit


@pytest.mark.parametrize("prompts", [1, 2, 3], ids=lambda count: f"{count}-prompts")
@pytest.mark.parametrize("family", list(stand_ins.NETWORKS))
def test_image_by_image_gives_what_all_at_once_gives(
    comfy, stand_in, small_memory, caplog, family, prompts, tally
):
    case = stand_in(family, batch=3)
    positive = [
        [
            case.positive[0][0][:prompts],
            {k: v[:prompts] if torch.is_tensor(v) else v for k, v in case.positive[0][1].items()},
        ]
    ]
    model = apply(comfy, case.model, case.hypernoise)
    modulated_noise = comfy.ours("nodes.comfy_model").modulated_noise
    expected = modulated_noise(model, positive, case.noise, 0)
    forget(case.hypernoise)
    batches = small_memory(1)
    with caplog.at_level(logging.WARNING):
        found = modulated_noise(model, positive, case.noise, 0)
    assert batches == [3, 1, 1, 1]
    assert "one image at a time" in caplog.text
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    tally("no memory for a batch").count("made image by image")


def test_image_by_image_with_sana_sprint(comfy, loaded, fresh, small_memory):
    model = apply(comfy, loaded.model, fresh)
    expected = comfy.sample(model, loaded.prompt, loaded.latent)
    forget(fresh)
    batches = small_memory(1)
    found = comfy.sample(model, loaded.prompt, loaded.latent)
    assert batches == [2, 1, 1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_masks_of_prompts_go_with_their_images(comfy, stand_in, small_memory):
    case = stand_in("flux", batch=3)
    masks = (torch.rand(3, *case.noise.shape[2:]) > 0.5).float()
    first, second = case.positive[0], case.positive[0]
    positive = [
        [first[0][:1], {**first[1], "mask": masks, "mask_strength": 1.0}],
        [second[0][1:2], {**second[1], "mask": 1 - masks, "mask_strength": 1.0}],
    ]
    model = apply(comfy, case.model, case.hypernoise)
    modulated_noise = comfy.ours("nodes.comfy_model").modulated_noise
    expected = modulated_noise(model, positive, case.noise, 0)
    forget(case.hypernoise)
    assert small_memory(1) == []
    found = modulated_noise(model, positive, case.noise, 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_memory_for_one_image_the_run_stops_with_what_to_do(
    comfy, loaded, fresh, small_memory, tally
):
    batches = small_memory(0)
    message = r"2 x 16 x 8 x 8, even one image at a time.*out_of_memory in Apply"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        comfy.sample(apply(comfy, loaded.model, fresh), loaded.prompt, loaded.latent)
    assert batches == [2, 1]
    tally("no memory for an image").count("stopped with a message")


def test_the_plain_noise_is_used_only_where_the_widget_says_so_and_never_silently(
    comfy, loaded, fresh, small_memory, caplog, tally
):
    plain = comfy.sample(loaded.model, loaded.prompt, loaded.latent)
    small_memory(0)
    model = apply(comfy, loaded.model, fresh, out_of_memory="use the plain noise")
    for _ in range(2):
        caplog.clear()
        found = comfy.sample(model, loaded.prompt, loaded.latent)
        assert torch.equal(found, plain)
        assert caplog.text.count("This run uses the plain noise") == 1
        tally("no memory for an image").count("plain noise, as asked for")


def test_other_models_are_unloaded_before_the_second_try(comfy, loaded, fresh, small_memory):
    import comfy.model_management as management

    other = comfy.run("HyperNoise_LoadHypernetwork", hypernetwork=stand_ins.OTHER)[0].patcher
    management.load_models_gpu([other])
    unloaded = []
    original = other.detach
    other.detach = lambda *args, **options: (unloaded.append("other"), original(*args, **options))
    model = apply(comfy, loaded.model, fresh)
    small_memory(1)
    comfy.sample(model, loaded.prompt, loaded.latent)
    assert unloaded == ["other"]
    names = [type(each.model.model).__name__ for each in management.current_loaded_models]
    assert "SanaSprint" in names


def test_an_error_that_is_not_of_memory_is_not_tried_again(comfy, loaded, fresh, passes):
    with FaultAt(300, Fault), pytest.raises(Fault):
        comfy.sample(apply(comfy, loaded.model, fresh), loaded.prompt, loaded.latent)
    assert len(passes) <= 1


def test_a_fault_at_any_operation_of_a_run_leaves_no_trace(comfy, loaded, fresh, scale, tally):
    model = apply(comfy, loaded.model, fresh)
    network, adapter = loaded.network, fresh.hypernetwork

    def run() -> torch.Tensor:
        forget(fresh)
        return comfy.sample(model, loaded.prompt, loaded.latent)

    expected = run()
    with FaultAt(10**9, Fault) as counter:
        run()
    states, tensors = (State.of(network), State.of(adapter)), count_tensors()
    for at in range(1, counter.count + 1, scale(61, 31, 1)):
        for error in (Fault, out_of_memory):
            try:
                with FaultAt(at, error):
                    found = run()
            except (Fault, torch.OutOfMemoryError):
                outcome = "stopped, no trace"
            else:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
                outcome = "went on, right image"
            states[0].check(network)
            states[1].check(adapter)
            tally("a fault in a sampling run").count(outcome)
    found = None
    assert count_tensors() == tensors
    assert torch.equal(run(), expected)


def test_any_sequence_of_runs_and_faults_leaves_the_model_as_it_was(comfy, loaded, scale, tally):
    import comfy.model_management as management

    names = (stand_ins.FILE, stand_ins.OTHER)
    adapters = [comfy.run("HyperNoise_LoadHypernetwork", hypernetwork=n)[0] for n in names]
    strengths = (0.0, 0.5, 1.0, -1.0)

    def sample(which: int, strength: float) -> torch.Tensor:
        model = apply(comfy, loaded.model, adapters[which], strength)
        return comfy.sample(model, loaded.prompt, loaded.latent)

    expected = {(which, s): sample(which, s) for which in (0, 1) for s in strengths}
    state, tensors = State.of(loaded.network), None

    def interrupt(at: int) -> None:
        layers = [m for m in loaded.network.modules() if isinstance(m, torch.nn.Linear)]

        def stop(*_: object) -> None:
            management.interrupt_current_processing()
            management.throw_exception_if_processing_interrupted()

        handle = layers[at % len(layers)].register_forward_pre_hook(stop)
        try:
            with pytest.raises(management.InterruptProcessingException):
                sample(rng.randrange(2), 1.0)
        finally:
            handle.remove()

    def fail(at: int) -> None:
        forget(adapters[0])
        with FaultAt(at, rng.choice((Fault, out_of_memory)), times=rng.choice((1, 10**6))):
            # Behind the pass's first operations it may be made again, image by image.
            errors = (Fault, torch.OutOfMemoryError)
            with pytest.raises(errors) if at < 50 else suppress(*errors):
                sample(0, 1.0)
        forget(adapters[0])  # made image by image it differs by rounding

    for seed in range(scale(4, 8, 200)):
        rng = random.Random(seed)
        for _ in range(8):
            step = rng.randrange(6)
            if step < 2:
                which, strength = rng.randrange(2), rng.choice(strengths)
                if rng.random() < 0.5:
                    forget(adapters[which])
                found = sample(which, strength)
                assert torch.equal(found, expected[which, strength]), f"seed {seed}"
            elif step == 2:
                interrupt(rng.randrange(100))
            elif step == 3:
                fail(rng.randrange(1, 1500))
            elif step == 4:
                management.unload_all_models()
            else:
                both = apply(comfy, apply(comfy, loaded.model, adapters[0]), adapters[1], 0.5)
                comfy.sample(both, loaded.prompt, loaded.latent)
            state.check(loaded.network)
        found = both = None
        for adapter in adapters:
            forget(adapter)
        management.cleanup_models()
        gc.collect()
        tensors = tensors or count_tensors()
        assert count_tensors() <= tensors, f"seed {seed}: tensors leaked"
        tally("sequences of sampling runs").count("no trace")
