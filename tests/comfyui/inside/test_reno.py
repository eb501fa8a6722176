"""ReNO: Search Noise, on the tiny generator and on small networks of ComfyUI's own."""

import pytest
import torch

PROMPT = "three green triangles"


def search(comfy, loaded, reward, noise, model=None, **settings):
    settings = {
        "iterations": 8, "learning_rate": 5.0, "max_grad_norm": 0.1, "penalty": 0.01, "patience": 0,
        **settings,
    }  # fmt: skip
    return comfy.run(
        "HyperNoise_ReNO",
        noise=noise,
        model=model or loaded.model,
        positive=loaded.prompt,
        latent=loaded.latent,
        vae=loaded.vae,
        reward=reward,
        prompt=PROMPT,
        **settings,
    )


@pytest.fixture
def noise(comfy):
    from comfy_extras.nodes_custom_sampler import RandomNoise

    return RandomNoise.execute(5).args[0]


def test_reno_finds_noise_whose_image_scores_higher(comfy, loaded, reward, noise):
    """And the sampler makes that very image from it."""
    import comfy.samplers as comfy_samplers
    from comfy_extras.nodes_custom_sampler import BasicGuider, SamplerCustomAdvanced

    weights = {k: v.clone() for k, v in loaded.network.state_dict().items()}
    found, images, scores = search(comfy, loaded, reward, noise)
    latent = comfy.ours("nodes.comfy_model").latent_for(loaded.model, loaded.latent)

    def sampled(source):
        guider = BasicGuider.execute(loaded.model, loaded.prompt).args[0]
        sampler = comfy_samplers.sampler_object("euler")
        sigmas = torch.tensor([1.0, 0.0])
        result = SamplerCustomAdvanced.execute(source, guider, sampler, sigmas, latent)
        return loaded.vae.decode(result.args[0]["samples"])

    plain = comfy.run(
        "HyperNoise_ScoreImages", images=[sampled(noise)], reward=[reward], prompt=[PROMPT]
    )[0]
    assert all(after > before + 0.3 for before, after in zip(plain, scores, strict=True))
    assert (sampled(found) - images).abs().max() < 1e-3
    assert images.min() >= 0 and images.max() <= 1
    assert all(v.equal(weights[k]) for k, v in loaded.network.state_dict().items())
    assert not any(m._forward_hooks for m in loaded.network.modules())


def test_reno_has_model_vae_and_reward_loaded_side_by_side(comfy, loaded, reward, noise):
    import comfy.model_management as management

    management.unload_all_models()
    search(comfy, loaded, reward, noise, iterations=1)
    side_by_side = {entry.model.model for entry in management.current_loaded_models}
    (patcher,) = reward.patchers.values()
    assert side_by_side >= {loaded.model.model, loaded.vae.patcher.model, patcher.model}


def test_a_step_of_reno_goes_no_further_than_max_grad_norm_lets_it(comfy, loaded, reward, noise):
    latent = comfy.ours("nodes.comfy_model").latent_for(loaded.model, loaded.latent)
    start = noise.generate_noise(latent)
    longest = []
    for max_grad_norm in (0.001, 0.01):
        found = search(comfy, loaded, reward, noise, iterations=1, max_grad_norm=max_grad_norm)[0]
        moved = (found.generate_noise(latent) - start).flatten(1).norm(dim=1)
        longest.append(moved.max().item())
    # The first step of Nesterov momentum 0.9 is 1.9 times the gradient's.
    assert longest == pytest.approx([5.0 * 1.9 * 0.001, 5.0 * 1.9 * 0.01], rel=1e-2)


def test_captions_of_reno_show_the_score_before_and_the_one_after(
    comfy, loaded, reward, noise, monkeypatch
):
    pictures, shown = comfy.ours("nodes.pictures"), []
    original = pictures.with_captions

    def recording(images, captions):
        shown.append(list(captions))
        return original(images, captions)

    monkeypatch.setattr(pictures, "with_captions", recording)
    _, _, scores = search(comfy, loaded, reward, noise, iterations=3)
    before = [float(caption.split(" > ")[0]) for caption in shown[0]]
    expected = [f"{a:.3f} > {b:.3f}" for a, b in zip(before, scores, strict=True)]
    assert shown[-1] == expected
    assert all(b > a for a, b in zip(before, scores, strict=True))


def test_reno_starts_from_the_hypernetwork_s_noise(comfy, loaded, reward, noise):
    modulated = comfy.run(
        "HyperNoise_ModulateNoise", noise=noise, model=loaded.model, positive=loaded.prompt,
        hypernoise=loaded.hypernoise, strength=1.0,
    )[0]  # fmt: skip
    tiny = {"iterations": 1, "learning_rate": 0.001}
    latent = comfy.ours("nodes.comfy_model").latent_for(loaded.model, loaded.latent)
    for start in (noise, modulated):
        found = search(comfy, loaded, reward, start, **tiny)[0].generate_noise(latent)
        assert (found - start.generate_noise(latent)).abs().max() < 1e-3


def test_found_noise_is_for_its_own_size(comfy, loaded, reward, noise):
    found = search(comfy, loaded, reward, noise, iterations=1)[0]
    with pytest.raises(ValueError, match="the sampler's latent has shape"):
        found.generate_noise({"samples": torch.zeros(1, 8, 4, 4)})


def test_an_interrupt_ends_the_search_and_leaves_the_weights(comfy, loaded, reward, noise):
    """In the middle of a step, whose gradient is being recorded."""
    import comfy.model_management as management

    from hypernoise.tests.trust.state import State

    (patcher,) = reward.patchers.values()
    modules = [loaded.network, loaded.vae.first_stage_model, patcher.model]
    search(comfy, loaded, reward, noise, iterations=1)
    before = [(State.of(m), [p.requires_grad for p in m.parameters()]) for m in modules]
    calls = []

    def interrupt(*_):
        calls.append(torch.is_grad_enabled())
        if len(calls) == 2:
            management.interrupt_current_processing()
            management.throw_exception_if_processing_interrupted()

    handle = loaded.network.transformer_blocks[1].register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(management.InterruptProcessingException):
            search(comfy, loaded, reward, noise)
    finally:
        handle.remove()
    assert calls == [True, True]
    for module, (state, wanted) in zip(modules, before, strict=True):
        state.check(module)
        assert [p.requires_grad for p in module.parameters()] == wanted
    assert not management.in_training


class Long:
    """A NOISE that is twice as long as noise is."""

    def __init__(self, noise):
        self.noise, self.seed = noise, noise.seed

    def generate_noise(self, latent):
        return 2 * self.noise.generate_noise(latent)


def test_the_penalty_of_reno_draws_the_noise_to_the_length_of_noise(comfy, loaded, reward, noise):
    latent = comfy.ours("nodes.comfy_model").latent_for(loaded.model, loaded.latent)
    settings = {"iterations": 2, "learning_rate": 7.0, "max_grad_norm": 1.0}
    without, drawn = (
        search(comfy, loaded, reward, Long(noise), penalty=penalty, **settings)[0]
        .generate_noise(latent)
        .flatten(1)
        .norm(dim=1)
        for penalty in (0.0, 100.0)
    )
    natural = latent["samples"][0].numel() ** 0.5
    assert without.min() > 1.8 * natural
    assert (drawn - natural).abs().min() < 0.3 * natural  # of the image that scores higher there


@pytest.fixture
def steps(monkeypatch) -> list:
    """Grows by one entry with each picture that a node shows while it runs."""
    import comfy.utils

    shown = []

    def hook(value, total, preview, **options):
        if preview is not None:
            shown.append((value, total))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return shown


@pytest.mark.parametrize(("patience", "count"), [(0, 5), (2, 3)])
def test_reno_stops_where_its_patience_ends(comfy, loaded, noise, steps, patience, count):
    """With a reward that no image raises."""
    still = comfy.run("HyperNoise_LoadReward", reward="Redness (redness)", weight=0.0)[0]
    search(comfy, loaded, still, noise, iterations=4, patience=patience)
    assert steps == [(step, 4) for step in range(count)]


def search_in_stand_in(comfy, built, **settings):
    from hypernoise.hypernoise_core.reno import RenoConfig

    rewards = comfy.run("HyperNoise_LoadReward", reward="Redness (redness)", weight=1.0)[0]

    class Vae:
        """Shows the first three channels, most values of which stay in range."""

        vae_dtype = torch.float32
        first_stage_model = torch.nn.Module()
        patcher = comfy.ours("nodes.comfy_model").manage(torch.nn.Identity())

    Vae.first_stage_model.decode = lambda latents: latents[:, :3].repeat(1, 1, 8, 8) / 100
    return comfy.ours("nodes.reno_search").search(
        built.model, built.positive, Vae, rewards, PROMPT, built.noise, 0,
        RenoConfig(iterations=5, **settings), lambda *step: None,
    )  # fmt: skip


def test_gradients_pass_a_network_of_comfyui_s_own(comfy, stand_in):
    """Whose weights are made in inference mode, as ComfyUI's loaders do."""
    built = stand_in("sd_turbo", batch=2)
    assert all(p.is_inference() for p in built.model.model.diffusion_model.parameters())
    result = search_in_stand_in(comfy, built)
    assert (result.scores > result.history[0]).all()


def test_reno_starts_on_the_image_that_a_sampler_makes_of_the_noise(comfy, stand_in):
    """Also where a model scales its noise: by one thing at full noise, by another below it."""
    from comfy.sample import sample

    built = stand_in("sd_turbo")
    result = search_in_stand_in(comfy, built, max_grad_norm=1e-12)
    sigma = float(built.model.get_model_object("model_sampling").sigma_max)
    latents = sample(
        built.model, built.noise, 1, 1.0, "euler", "simple", built.positive, built.positive,
        torch.zeros_like(built.noise), sigmas=torch.tensor([sigma, 0.0]), seed=0,
    )  # fmt: skip
    expected = (latents[:, :3].repeat(1, 1, 8, 8) / 200 + 0.5).clamp(0, 1)
    assert ((0 < expected) & (expected < 1)).float().mean() > 0.5
    torch.testing.assert_close(result.images, expected, rtol=1e-5, atol=1e-5)


def test_a_network_without_a_gradient_is_named(comfy, stand_in):
    """ComfyUI's FLUX overwrites what its gradient would need."""
    import comfy.model_management as management

    with pytest.raises(TypeError, match="Flux does not support gradients"):
        search_in_stand_in(comfy, stand_in("flux"))
    assert not management.in_training
