"""The nodes around NOISE: Modulate Noise, Noise to Latent, Preview Noise Delta."""

import pytest
import torch


@pytest.fixture
def noise(comfy):
    from comfy_extras.nodes_custom_sampler import RandomNoise

    return RandomNoise.execute(3).args[0]


def modulate(comfy, loaded, noise, strength=1.0):
    return comfy.run(
        "HyperNoise_ModulateNoise",
        noise=noise,
        model=loaded.model,
        positive=loaded.prompt,
        hypernoise=loaded.hypernoise,
        strength=strength,
    )[0]


def sample_advanced(loaded, noise):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import BasicGuider, SamplerCustomAdvanced

    guider = BasicGuider.execute(loaded.model, loaded.prompt).args[0]
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    latents = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, loaded.latent)
    return latents.args[0]["samples"]


def test_modulated_noise_in_the_advanced_sampler_equals_apply_in_ksampler(comfy, loaded, noise):
    applied = comfy.run(
        "HyperNoise_Apply", model=loaded.model, hypernoise=loaded.hypernoise, strength=0.7
    )[0]
    expected = comfy.sample(applied, loaded.prompt, loaded.latent, steps=2)
    found = sample_advanced(loaded, modulate(comfy, loaded, noise, 0.7))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_strength_zero_hands_the_noise_through(comfy, loaded, noise):
    assert modulate(comfy, loaded, noise, 0.0) is noise


def test_the_seed_is_the_one_of_the_noise(comfy, loaded, noise):
    assert modulate(comfy, loaded, noise).seed == noise.seed


def test_noise_to_latent_is_what_the_sampler_sees(comfy, loaded, noise):
    latent = comfy.run(
        "HyperNoise_NoiseToLatent", noise=noise, model=loaded.model, latent=loaded.latent
    )[0]["samples"]
    format = loaded.model.model.latent_format
    drawn = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(format.process_in(latent), drawn)


def test_noise_to_latent_keeps_what_belongs_to_the_latent(comfy, loaded, noise):
    more = {"noise_mask": torch.ones(1, 1, 64, 64), "batch_index": [3, 1], "of_another_node": "x"}
    latent = comfy.run(
        "HyperNoise_NoiseToLatent", noise=noise, model=loaded.model, latent=loaded.latent | more
    )[0]
    assert latent.items() >= more.items() and not torch.equal(*latent["samples"])


def test_an_empty_batch_is_named(comfy, loaded, noise):
    empty = {"samples": torch.zeros(0, 32, 2, 2)}
    with pytest.raises(ValueError, match="latent holds no image"):
        comfy.run("HyperNoise_NoiseToLatent", noise=noise, model=loaded.model, latent=empty)


def test_the_preview_shows_noise_delta_and_their_sum(comfy, loaded, noise):
    before, delta, after = comfy.run(
        "HyperNoise_PreviewDelta",
        noise=noise,
        modulated_noise=modulate(comfy, loaded, noise),
        model=loaded.model,
        latent=loaded.latent,
        vae=loaded.vae,
    )
    assert before.shape == delta.shape == after.shape == (2, 64, 64, 3)
    assert not torch.equal(before, after)
    same, nothing, _ = comfy.run(
        "HyperNoise_PreviewDelta",
        noise=noise,
        modulated_noise=noise,
        model=loaded.model,
        latent=loaded.latent,
        vae=loaded.vae,
    )
    assert torch.equal(same, before)
    zeros = torch.zeros(1, loaded.vae.latent_channels, 8, 8)
    torch.testing.assert_close(nothing[:1], loaded.vae.decode(zeros))
