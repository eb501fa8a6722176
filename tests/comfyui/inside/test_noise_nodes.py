"""The nodes around noise: Modulate Noise, Noise to Latent, Preview Noise Delta, Seeds."""

import pytest
import torch


@pytest.fixture
def noise(comfy):
    from comfy_extras.nodes_custom_sampler import RandomNoise

    return RandomNoise.execute(3).args[0]


def modulate(comfy, loaded, noise, strength=1.0, **options):
    return comfy.run(
        "HyperNoise_ModulateNoise",
        noise=noise,
        model=loaded.model,
        positive=loaded.prompt,
        hypernoise=loaded.hypernoise,
        strength=strength,
        **options,
    )[0]


def sample_advanced(loaded, noise, model=None, sigmas=(1.0, 0.5, 0.0), latent=None):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import BasicGuider, SamplerCustomAdvanced

    guider = BasicGuider.execute(model or loaded.model, loaded.prompt).args[0]
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor(sigmas)
    latent = loaded.latent if latent is None else latent
    latents = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)
    return latents.args[0]["samples"]


def test_modulated_noise_in_the_advanced_sampler_equals_apply_in_ksampler(comfy, loaded, noise):
    applied = comfy.run(
        "HyperNoise_Apply", model=loaded.model, hypernoise=loaded.hypernoise, strength=0.7
    )[0]
    expected = comfy.sample(applied, loaded.prompt, loaded.latent, steps=2)
    found = sample_advanced(loaded, modulate(comfy, loaded, noise, 0.7))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


SCALE = {"at_partial_noise": "scale the change by sigma"}
IMAGE = {"samples": torch.full((2, 16, 8, 8), 0.3)}
MASKED = {**IMAGE, "noise_mask": torch.eye(8)[None]}


@pytest.mark.parametrize("options", [{}, SCALE], ids=["leave", "scale"])
@pytest.mark.parametrize("latent", [None, IMAGE, MASKED], ids=["empty", "image", "masked"])
@pytest.mark.parametrize("sigmas", [(1.0, 0.5, 0.0), (0.9968, 0.5, 0.0), (0.5, 0.25, 0.0)])
def test_with_the_sampler_s_sigmas_it_decides_as_apply_does(
    comfy, loaded, noise, sigmas, latent, options
):
    applied = comfy.run(
        "HyperNoise_Apply",
        model=loaded.model,
        hypernoise=loaded.hypernoise,
        strength=1.0,
        **options,
    )[0]
    expected = sample_advanced(loaded, noise, applied, sigmas, latent)
    modulated = modulate(comfy, loaded, noise, sigmas=torch.tensor(sigmas), **options)
    found = sample_advanced(loaded, modulated, None, sigmas, latent)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    plain = sample_advanced(loaded, noise, None, sigmas, latent)
    left = latent is not None and sigmas[0] < 1 and not options
    assert torch.equal(found, plain) == left


def test_without_sigmas_an_image_s_noise_is_left_alone_and_the_log_says_why(
    comfy, loaded, noise, caplog
):
    modulated = modulate(comfy, loaded, noise)
    half = (0.5, 0.25, 0.0)
    found = sample_advanced(loaded, modulated, None, half, IMAGE)
    assert torch.equal(found, sample_advanced(loaded, noise, None, half, IMAGE))
    assert caplog.text.count("Connect the sampler's sigmas to Modulate Noise") == 1


def test_reno_starts_from_the_modulated_noise_whatever_image_gives_the_size(
    comfy, loaded, noise, monkeypatch
):
    starts = []

    def search(model, positive, vae, reward, prompt, start, *rest):
        starts.append(start)
        raise InterruptedError

    monkeypatch.setattr(comfy.ours("nodes.reno_search"), "search", search)
    settings = {"iterations": 1, "learning_rate": 1.0, "max_grad_norm": 1.0, "penalty": 0.0}
    modulated = modulate(comfy, loaded, noise)
    for latent in (loaded.latent, IMAGE):
        with pytest.raises(InterruptedError):
            comfy.run(
                "HyperNoise_ReNO", noise=modulated, model=loaded.model, positive=loaded.prompt,
                latent=latent, vae=loaded.vae, reward=None, prompt="", patience=0, **settings,
            )  # fmt: skip
    assert torch.equal(*starts)
    assert not torch.equal(starts[0], noise.generate_noise(IMAGE))


def test_to_scale_it_needs_sigmas(comfy, loaded, noise):
    with pytest.raises(ValueError, match=r"at_partial_noise.*Connect the sampler's sigmas"):
        modulate(comfy, loaded, noise, **SCALE)


def test_where_no_step_is_sampled_the_noise_stays(comfy, loaded, noise):
    """As BasicScheduler's sigmas at denoise 0."""
    modulated = modulate(comfy, loaded, noise, sigmas=torch.tensor([]))
    assert torch.equal(modulated.generate_noise(IMAGE), noise.generate_noise(IMAGE))


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


def test_the_graph_s_latent_stays_as_it_is(comfy, loaded, noise):
    """Other nodes get the same one: a sampler reads from it what its size is of."""
    before = dict(loaded.latent)
    assert len(before) > 1
    nodes = {"NoiseToLatent": {}, "PreviewDelta": {"modulated_noise": noise, "vae": loaded.vae}}
    for node, more in nodes.items():
        inputs = {"noise": noise, "model": loaded.model, "latent": loaded.latent, **more}
        comfy.run(f"HyperNoise_{node}", **inputs)
        assert loaded.latent == before


def test_an_empty_batch_is_named(comfy, loaded, noise):
    empty = {"samples": torch.zeros(0, 32, 2, 2)}
    with pytest.raises(ValueError, match="latent is an empty batch"):
        comfy.run("HyperNoise_NoiseToLatent", noise=noise, model=loaded.model, latent=empty)


def test_the_preview_shows_noise_delta_and_their_sum(comfy, loaded, noise):
    modulated = modulate(comfy, loaded, noise)
    shown = comfy.run(
        "HyperNoise_PreviewDelta",
        noise=noise,
        modulated_noise=modulated,
        model=loaded.model,
        latent=loaded.latent,
        vae=loaded.vae,
    )
    latent = comfy.ours("nodes.comfy_model").latent_for(loaded.model, loaded.latent)
    before, after = noise.generate_noise(latent), modulated.generate_noise(latent)
    format = loaded.model.model.latent_format
    for images, drawn in zip(shown, (before, after - before, after), strict=True):
        assert images.shape == (2, 64, 64, 3)
        torch.testing.assert_close(images, loaded.vae.decode(format.process_out(drawn)))


def test_seeds_count_up(comfy):
    assert comfy.run("HyperNoise_Seeds", seed=5, count=3) == ([5, 6, 7],)
