"""The families against diffusers' stock pipelines on tiny random weights."""

import types

import diffusers
import pytest
import torch

from hypernoise.hypernoise_core.families import FAMILIES, family_of_pipeline, looks_like
from hypernoise.hypernoise_core.families.family import stock_default
from hypernoise.hypernoise_core.families.flux import pack_latents, unpack_latents
from hypernoise.hypernoise_core.hypernetwork import draw_noise, seed_generators
from hypernoise.training.pipelines import load_pipeline


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_denoise_and_decode_make_the_stock_pipelines_images(make_tiny, tiny, steps):
    size = (64, 32) if tiny.family.name == "sana_sprint" else (16, 24)
    shape = tiny.family.latent_shape(tiny.pipeline, *size)
    tiny = make_tiny(tiny.family.name)
    tiny.noise = draw_noise(shape, seed_generators(range(3)))
    with torch.no_grad():
        expected = tiny.stock_images(steps, seed_generators(range(3)), *size, tiny.noise)
        latents = tiny.family.denoise(
            tiny.pipeline, tiny.noise, tiny.conditioning, steps, seed_generators(range(3))
        )
        images = tiny.family.decode(tiny.pipeline, latents)
    assert images.shape == (3, 3, *size)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"guidance_embeds": True}, {"dynamic": True}])
def test_flux_dev_takes_guidance_and_the_schedulers_shift(make_tiny, options):
    tiny = make_tiny("flux", **options)
    with torch.no_grad():
        expected = tiny.stock_images(3, None, 16, 16, tiny.noise, guidance_scale=3.5)
        latents = tiny.family.denoise(tiny.pipeline, tiny.noise, tiny.conditioning, 3)
        images = tiny.family.decode(tiny.pipeline, latents)
        if "guidance_embeds" in options:
            other = tiny.conditioning | {"guidance": torch.full((3,), 900.0)}
            changed = tiny.family.predict(tiny.network, tiny.noise, other)
            assert not torch.equal(changed, tiny.predict())
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


def test_flux_encodes_with_the_options_that_were_asked_for(make_tiny, monkeypatch):
    tiny, lengths = make_tiny("flux", guidance_embeds=True), []

    def encode_prompt(prompts, *, device, max_sequence_length):
        lengths.append(max_sequence_length)
        return torch.ones(len(prompts), 5, 12), torch.ones(len(prompts), 10), None

    monkeypatch.setattr(tiny.pipeline, "encode_prompt", encode_prompt)
    for name in ("tokenizer", "tokenizer_2"):
        monkeypatch.setattr(tiny.pipeline, name, words)
    for options, guidance in (({}, 3.5), ({"guidance_scale": 7, "max_sequence_length": 64}, 7.0)):
        c = tiny.family.encode(tiny.pipeline, ["a", "b"], **options)
        assert c["guidance"].tolist() == [guidance] * 2
    assert lengths == [512, 64]


def test_flux_leaves_a_scheduler_of_flow_sigmas_its_own(make_tiny):
    tiny = make_tiny("flux")
    tiny.pipeline.scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    with torch.no_grad():
        expected = tiny.stock_images(3, None, 16, 16, tiny.noise)
        latents = tiny.family.denoise(tiny.pipeline, tiny.noise, tiny.conditioning, 3)
        images = tiny.family.decode(tiny.pipeline, latents)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [1, 3])
def test_the_network_of_f_gets_the_noise_as_it_is_and_full_noise_as_timestep(tiny, strength):
    seen = []
    handle = tiny.network.register_forward_pre_hook(
        lambda network, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    noise = strength * tiny.noise
    with torch.no_grad():
        tiny.family.predict(tiny.network, noise, tiny.conditioning)
    handle.remove()
    ((args, kwargs),) = seen
    sample = args[0] if args else unpack_latents(kwargs["hidden_states"], *noise.shape[-2:])
    timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
    assert torch.equal(sample, noise)
    assert timestep.tolist() == [999.0 if tiny.family.name == "sd_turbo" else 1.0] * 3


def test_packing_round_trip():
    latents = torch.randn(2, 4, 6, 8)
    packed = pack_latents(latents)
    assert packed.shape == (2, 12, 16)
    assert torch.equal(packed[0, 1, :4], latents[0, 0, :2, 2:4].flatten())
    assert torch.equal(unpack_latents(packed, 6, 8), latents)


def test_the_output_of_a_prompt_does_not_depend_on_its_batch(tiny):
    with torch.no_grad():
        alone = tiny.family.predict(
            tiny.network, tiny.noise[1:2], {k: v[1:2] for k, v in tiny.conditioning.items()}
        )
        torch.testing.assert_close(tiny.predict()[1:2], alone, rtol=1e-4, atol=1e-5)


def words(prompts, **options):
    """A tokenizer: a token a word."""
    return types.SimpleNamespace(input_ids=[prompt.split() for prompt in prompts])


words.deprecation_warnings = {}


def test_sana_encodes_with_the_stock_pipelines_instruction_unless_told(tiny_sana, monkeypatch):
    seen = {}

    def encode_prompt(prompts, *, max_sequence_length, **options):
        seen.update(options, prompts=prompts, length=max_sequence_length)
        mask = torch.zeros(2, max_sequence_length)
        mask[:, :3] = 1
        return torch.randn(2, max_sequence_length, 12), mask

    monkeypatch.setattr(tiny_sana.pipeline, "encode_prompt", encode_prompt)
    monkeypatch.setattr(tiny_sana.pipeline, "tokenizer", words)
    c = tiny_sana.family.encode(tiny_sana.pipeline, ("a", "b"))
    assert seen["prompts"] == ["a", "b"]
    assert 3 < seen["length"] < 20  # far from the stock pipeline's 300, which would be padding
    assert seen["complex_human_instruction"][-1] == "User Prompt: "
    assert not seen["clean_caption"]
    torch.testing.assert_close(c["guidance"], torch.full((2,), 0.45))
    assert c["prompt_embeds"].shape == (2, 3, 12)  # padding behind the longest prompt is cut
    told = tiny_sana.family.encode(
        tiny_sana.pipeline,
        ["a", "b " * 90],
        complex_human_instruction=None,
        max_sequence_length=77,
        clean_caption=True,
        guidance_scale=9.0,
    )
    assert seen["clean_caption"]
    assert seen["complex_human_instruction"] is None
    assert seen["length"] == 77
    torch.testing.assert_close(told["guidance"], torch.full((2,), 0.9))


def test_sana_never_cuts_a_prompt_that_the_stock_pipeline_reads_whole(tiny_sana, monkeypatch):
    """Here a word has 20 tokens once the instruction stands before it."""
    lengths = []

    def encode_prompt(prompts, *, max_sequence_length, **options):
        lengths.append(max_sequence_length)
        mask = (torch.arange(max_sequence_length) < 20).long()[None]
        return torch.randn(1, max_sequence_length, 12), mask

    monkeypatch.setattr(tiny_sana.pipeline, "encode_prompt", encode_prompt)
    monkeypatch.setattr(tiny_sana.pipeline, "tokenizer", words)
    c = tiny_sana.family.encode(tiny_sana.pipeline, ["a"])
    assert lengths[0] < 20 and lengths[1] == 300
    assert c["prompt_embeds"].shape == (1, 20, 12)


def test_sana_encodes_the_same_as_with_the_stock_pipeline_s_padding():
    pipeline = load_pipeline("tiny-sprint")
    prompts = ["a red circle", "A photo of two BLUE squares", ""]
    c = family_of_pipeline(pipeline).encode(pipeline, prompts)
    with torch.no_grad():
        instruction = stock_default(pipeline, "complex_human_instruction")
        embeds, mask = pipeline.encode_prompt(
            prompts, device="cpu", complex_human_instruction=instruction
        )
    length = c["prompt_embeds"].shape[1]
    assert length == int(mask.sum(1).max())
    assert torch.equal(c["prompt_attention_mask"], mask[:, :length])
    torch.testing.assert_close(c["prompt_embeds"], embeds[:, :length], rtol=1e-5, atol=1e-5)


def test_padding_that_encode_cuts_changes_nothing(tiny_sana):
    c = tiny_sana.conditioning | {"prompt_attention_mask": torch.tensor([[1, 1, 1, 0, 0]] * 3)}
    cut = c | {name: c[name][:, :3] for name in ("prompt_embeds", "prompt_attention_mask")}
    with torch.no_grad():
        outputs = [
            tiny_sana.family.predict(tiny_sana.network, tiny_sana.noise, x) for x in (c, cut)
        ]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


def test_latent_shape_and_sizes_that_do_not_fit(tiny):
    multiple = tiny.family.image_multiple(tiny.pipeline)
    c, h, w = tiny.family.latent_shape(tiny.pipeline, 4 * multiple, 2 * multiple)
    assert (c, h / w) == (4, 2)
    with pytest.raises(ValueError, match=f"multiples of {multiple}, got height 17"):
        tiny.family.latent_shape(tiny.pipeline, 17, 2 * multiple)
    with pytest.raises(ValueError, match=f"use height {multiple}"):
        tiny.family.latent_shape(tiny.pipeline, 0, 2 * multiple)
    with pytest.raises(ValueError, match=f"use height {4 * multiple} and width {3 * multiple}"):
        tiny.family.latent_shape(tiny.pipeline, 4 * multiple - 1, 3 * multiple)


def test_sizes_are_those_of_the_stock_pipelines(tiny):
    """FLUX takes patches of 2 x 2 latents, and its network does not tell a size."""
    factor, is_flux = tiny.pipeline.vae_scale_factor, tiny.family.name == "flux"
    assert tiny.family.image_multiple(tiny.pipeline) == factor * (2 if is_flux else 1)
    assert tiny.family.default_size(tiny.pipeline) == factor * (128 if is_flux else 8)


def test_pipelines_are_known_by_their_class(tiny):
    assert family_of_pipeline(tiny.pipeline) is tiny.family
    derived = type("OfSomebodyElse", (type(tiny.pipeline),), {})
    assert family_of_pipeline(object.__new__(derived)) is tiny.family
    with pytest.raises(ValueError, match=r"SimpleNamespace.*SanaSprintPipeline, FluxPipeline"):
        family_of_pipeline(types.SimpleNamespace())


def test_layer_names_tell_the_family(tiny):
    names = tiny.hypernetwork().layer_names
    assert looks_like(names) is tiny.family
    assert all(tiny.family.has_layer(name) for name in names)
    for other in FAMILIES:
        if other is not tiny.family:
            assert not all(other.has_layer(name) for name in names)
    attention = [name for name in names if "attn" in name and name.endswith("to_q")]
    assert looks_like(attention) is tiny.family
    assert looks_like(["something.else"]) is None
