"""generate(): batches, seeds, shared conditioning, and what it refuses."""

import diffusers
import pytest
import torch

from hypernoise.hypernoise_core.errors import AdapterError
from hypernoise.hypernoise_core.generate import encode_prompts, generate
from hypernoise.hypernoise_core.hypernetwork import (
    NoiseHypernetwork,
    sample_noise,
    seed_generators,
)
from hypernoise.training.pipelines import load_pipeline

PROMPTS = ["a", "b", "a"]


@pytest.fixture
def encoded(tiny, monkeypatch):
    """The pipeline encodes prompts by name; the list tells which it was asked for."""
    rows = {"a": 0, "b": 1, "c": 2}
    calls = []

    def encode(_, pipeline, prompts, **overrides):
        calls.append(list(prompts))
        return {name: t[[rows[p] for p in prompts]] for name, t in tiny.conditioning.items()}

    monkeypatch.setattr(type(tiny.family), "encode", encode)
    return calls


def test_images_are_in_range_and_vary_with_the_seed(tiny, encoded):
    made = generate(tiny.pipeline, PROMPTS, seeds=[1, 2, 3], height=16, width=24)
    assert made.images.shape == (3, 3, 16, 24)
    assert made.images.dtype == torch.float32
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert made.delta is None
    assert not torch.equal(made.images[0], made.images[2])
    shape = tiny.family.latent_shape(tiny.pipeline, 16, 24)
    assert torch.equal(made.noise, sample_noise(shape, [1, 2, 3]))


SEEDS = [5, 6, 2**40 + 5]


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("ancestral", [False, True])
def test_a_seed_gives_the_image_that_the_stock_pipeline_makes_of_it(
    tiny, make_tiny, steps, ancestral
):
    """The sampler, too, draws from the seed's generator, behind the initial noise."""
    if ancestral:  # noise between the steps, which SANA-Sprint's own sampler adds as well
        if tiny.family.name != "sd_turbo":
            return
        tiny = make_tiny("sd_turbo")
        scheduler = tiny.pipeline.scheduler
        tiny.pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(
            scheduler.config
        )
    size = (64, 32) if tiny.family.name == "sana_sprint" else (16, 24)
    expected = tiny.stock_images(steps, seed_generators(SEEDS), *size)
    made = generate(
        tiny.pipeline,
        PROMPTS,
        seeds=SEEDS,
        steps=steps,
        height=size[0],
        width=size[1],
        batch_size=2,
        conditioning=tiny.conditioning,
    )
    torch.testing.assert_close(made.images, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_an_image_does_not_depend_on_its_batch(tiny, encoded, steps):
    f = tiny.hypernetwork()
    size = {"steps": steps, "height": 16, "width": 16}
    together = generate(tiny.pipeline, PROMPTS, f, seeds=[1, 2, 3], **size)
    for batch_size in (1, 2):
        made = generate(tiny.pipeline, PROMPTS, f, seeds=[1, 2, 3], batch_size=batch_size, **size)
        torch.testing.assert_close(made.images, together.images, rtol=1e-4, atol=1e-4)
    alone = generate(tiny.pipeline, ["b"], f, seeds=[2], **size)
    torch.testing.assert_close(alone.images, together.images[1:2], rtol=1e-4, atol=1e-4)


def test_prompts_are_encoded_once_for_base_and_modulated_runs(tiny, encoded):
    base = generate(tiny.pipeline, PROMPTS, seeds=[1, 2, 3], height=16, width=16)
    assert encoded == [["a", "b"]]
    made = generate(
        tiny.pipeline,
        PROMPTS,
        tiny.hypernetwork(),
        seeds=[1, 2, 3],
        height=16,
        width=16,
        conditioning=base.conditioning,
    )
    assert encoded == [["a", "b"]]
    assert torch.equal(made.noise, base.noise)
    assert not torch.equal(made.images, base.images)


def test_strength_zero_and_a_new_hypernetwork_give_the_base_images(tiny, encoded):
    run = {"seeds": [1, 2], "height": 16, "width": 16, "steps": 2}
    base = generate(tiny.pipeline, ["a", "b"], **run)
    none = generate(tiny.pipeline, ["a", "b"], tiny.hypernetwork(), strength=0, **run)
    new = NoiseHypernetwork.initialise(tiny.network, tiny.family, rank=2, alpha=2)
    zero = generate(tiny.pipeline, ["a", "b"], new, **run)
    assert torch.equal(none.images, base.images)
    assert torch.equal(zero.images, base.images)


def test_given_noise_changes_nothing_but_the_noise(tiny, encoded):
    run = {"seeds": [1, 2], "height": 16, "width": 16, "steps": 3}
    base = generate(tiny.pipeline, ["a", "b"], **run)
    same = generate(tiny.pipeline, ["a", "b"], noise=base.noise, **run)
    assert torch.equal(same.images, base.images)
    with pytest.raises(ValueError, match=r"the noise has the shape \(1, 4, 8, 8\)"):
        generate(tiny.pipeline, ["a", "b"], noise=base.noise[:1], **run)


def test_the_hypernetwork_can_be_told_another_prompt_than_the_generator(tiny, encoded):
    f, run = tiny.hypernetwork(), {"height": 16, "width": 16, "batch_size": 2}
    other = {name: tensor[2:] for name, tensor in tiny.conditioning.items()}
    told = {"seeds": [1, 2, 3], "noise_conditioning": other, **run}
    made = generate(tiny.pipeline, ["a", "b", "a"], f, **told)
    hears_c = generate(tiny.pipeline, ["c", "c", "c"], f, seeds=[1, 2, 3], **run)
    torch.testing.assert_close(made.delta, hears_c.delta, rtol=1e-4, atol=1e-4)
    assert not torch.equal(made.images, hears_c.images)
    by_hand = made.noise + made.delta
    same = generate(tiny.pipeline, ["a", "b", "a"], noise=by_hand, seeds=[1, 2, 3], **run)
    torch.testing.assert_close(made.images, same.images, rtol=1e-4, atol=1e-4)


def test_each_image_can_have_a_noise_prompt_of_its_own(tiny, encoded):
    f, run = tiny.hypernetwork(), {"seeds": [1, 2, 3], "height": 16, "width": 16, "batch_size": 2}
    prompts = ["a", "b", "c"]
    own = generate(tiny.pipeline, prompts, f, **run)
    same = generate(tiny.pipeline, prompts, f, noise_conditioning=tiny.conditioning, **run)
    assert torch.equal(same.images, own.images)
    two = {name: tensor[:2] for name, tensor in tiny.conditioning.items()}
    with pytest.raises(ValueError, match="noise_conditioning has 2 rows of .* for 3 prompts"):
        generate(tiny.pipeline, prompts, f, noise_conditioning=two, **run)


def test_a_gradient_can_be_taken_after_images_were_generated(tiny, encoded):
    """Generation runs in inference mode: nothing that it leaves behind may stand in the way."""
    f = tiny.hypernetwork()
    generate(tiny.pipeline, ["a"], f, seeds=[1], height=16, width=16)
    delta = f(tiny.network, tiny.noise, tiny.conditioning)
    latents = tiny.family.denoise(tiny.pipeline, tiny.noise + delta, tiny.conditioning, 1)
    tiny.family.decode(tiny.pipeline, latents).mean().backward()
    assert any(p.grad.abs().sum() > 0 for p in f.parameters())


def test_encoding_in_batches_joins_prompts_of_any_length(tiny_sana, monkeypatch):
    def encode(_, pipeline, prompts, **overrides):
        length = max(len(prompt) for prompt in prompts)
        ones = torch.ones(len(prompts), length)
        return {"prompt_embeds": ones[..., None].repeat(1, 1, 12), "mask": ones}

    monkeypatch.setattr(type(tiny_sana.family), "encode", encode)
    c = encode_prompts(tiny_sana.pipeline, ["abc", "a", "abcd", "a"], batch_size=1)
    assert c["mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert torch.equal(c["prompt_embeds"], c["mask"][..., None].repeat(1, 1, 12))


def test_the_family_s_options_reach_its_encoding():
    pipeline = load_pipeline("tiny-sprint")
    plain, guided = (
        encode_prompts(pipeline, ["a circle"], **options) for options in ({}, {"guidance_scale": 9})
    )
    torch.testing.assert_close(guided["guidance"], 2 * plain["guidance"])


def test_arguments_that_do_not_go_together_are_refused(tiny, encoded):
    with pytest.raises(ValueError, match="3 prompts and 2 seeds"):
        generate(tiny.pipeline, PROMPTS, seeds=[1, 2], height=16, width=16)
    with pytest.raises(ValueError, match="must be a list with one prompt"):
        generate(tiny.pipeline, "a", seeds=[1], height=16, width=16)
    with pytest.raises(
        ValueError, match="prompt 0 has 200001 characters; shorten it to at most 200000"
    ):
        generate(tiny.pipeline, ["a" * 200_001], seeds=[1], height=16, width=16)
    with pytest.raises(ValueError, match="must be at least 1"):
        generate(tiny.pipeline, ["a"], seeds=[1], steps=0, height=16, width=16)
    with pytest.raises(ValueError, match="multiples of"):
        generate(tiny.pipeline, ["a"], seeds=[1], height=15, width=16)
    with pytest.raises(ValueError, match="3 rows of prompt_embeds for 1 prompts"):
        generate(
            tiny.pipeline, ["a"], seeds=[1], height=16, width=16, conditioning=tiny.conditioning
        )
    one = {name: tensor[:1] for name, tensor in tiny.conditioning.items()}
    with pytest.raises(ValueError, match="1 rows of prompt_embeds for 2 prompts"):
        generate(tiny.pipeline, ["a", "b"], seeds=[1, 2], height=16, width=16, conditioning=one)


def test_an_adapter_of_another_family_is_refused(tiny, make_tiny, encoded):
    other = make_tiny({"flux": "sd_turbo"}.get(tiny.family.name, "flux"))
    with pytest.raises(AdapterError, match=f"is for {other.family.name}, the pipeline is a"):
        generate(tiny.pipeline, ["a"], other.hypernetwork(), seeds=[1], height=16, width=16)
