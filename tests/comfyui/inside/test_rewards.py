"""Reward nodes: scores, the best of N, comparisons, and ReNO, on the tiny generator."""

import pytest
import torch

PROMPT = "three green triangles"


@pytest.fixture(scope="module")
def reward(comfy):
    with torch.inference_mode():
        return comfy.run("HyperNoise_LoadReward", reward="tiny-preference (embedded)", weight=1.0)[
            0
        ]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Four of increasing redness."""
    ramp = torch.linspace(0, 1, 4).view(4, 1, 1, 1)
    return torch.cat([ramp.expand(4, 64, 64, 1), torch.zeros(4, 64, 64, 2)], dim=-1)


@pytest.fixture
def redness(comfy):
    return comfy.run("HyperNoise_LoadReward", reward="Redness (redness)", weight=2.0)[0]


def test_scores_are_the_core_s_weighted_and_their_mean(comfy, redness, images):
    scores, mean, report = comfy.run(
        "HyperNoise_ScoreImages", images=[images], reward=[redness], prompt=["a"]
    )
    assert scores == pytest.approx([0, 2 / 3, 4 / 3, 2])
    assert mean == pytest.approx(1.0)
    assert "image 3: 2 (redness 1)" in report


def test_chained_rewards_add_up_and_none_comes_twice(comfy, redness, reward, images):
    both = comfy.run(
        "HyperNoise_LoadReward",
        reward="tiny-preference (embedded)",
        weight=0.5,
        add_to=redness,
    )[0]
    assert both.weights == {"redness": 2.0, "tiny-preference": 0.5}
    single = [
        comfy.run("HyperNoise_ScoreImages", images=[images], reward=[r], prompt=[PROMPT])[0]
        for r in (redness, reward, both)
    ]
    for a, b, together in zip(*single, strict=True):
        assert together == pytest.approx(a + 0.5 * b, rel=1e-5)
    with pytest.raises(ValueError, match="redness is in add_to already"):
        comfy.run("HyperNoise_LoadReward", reward="Redness (redness)", weight=1.0, add_to=both)


def test_missing_weights_name_the_switch_and_the_folder(comfy):
    with pytest.raises(FileNotFoundError, match="hypernoise_rewards.*switch on download"):
        comfy.run("HyperNoise_LoadReward", reward="PickScore (pickscore)", weight=1.0)


@pytest.mark.parametrize(
    ("prompt", "per_line", "count", "expected"),
    [
        (["a"], False, 2, ["a", "a"]),
        (["a\nb"], False, 2, ["a\nb", "a\nb"]),
        (["a\n\n b"], True, 2, ["a", "b"]),
        (["a", "b"], False, 2, ["a", "b"]),
    ],
)
def test_prompts_for_one_and_for_many(comfy, prompt, per_line, count, expected):
    assert comfy.ours("nodes.rewards").prompts_for(count, prompt, per_line) == expected


@pytest.mark.parametrize(
    ("prompt", "per_line"), [(["a\nb"], True), (["a", "b"], False), (["one line"], True)]
)
def test_prompts_that_do_not_fit_are_refused(comfy, redness, images, prompt, per_line):
    with pytest.raises(ValueError, match="prompts for 4 images"):
        comfy.run(
            "HyperNoise_ScoreImages",
            images=[images],
            reward=[redness],
            prompt=prompt,
            one_prompt_per_line=[per_line],
        )


def test_each_image_is_scored_against_its_own_prompt(comfy, reward):
    image = torch.rand(1, 64, 64, 3)
    separate = [
        comfy.run("HyperNoise_ScoreImages", images=[image], reward=[reward], prompt=[p])[0][0]
        for p in (PROMPT, "a red circle")
    ]
    both = comfy.run(
        "HyperNoise_ScoreImages", images=[image, image], reward=[reward],
        prompt=[f"{PROMPT}\na red circle"], one_prompt_per_line=[True],
    )[0]  # fmt: skip
    assert both == pytest.approx(separate, rel=1e-5)


def test_what_no_reward_can_score_is_refused(comfy, redness):
    for bad in (torch.full((1, 64, 64, 3), float("nan")), torch.rand(1, 1, 1, 3)):
        with pytest.raises(ValueError, match=r"image 0 has values|1 x 1 pixels"):
            comfy.run("HyperNoise_ScoreImages", images=[bad], reward=[redness], prompt=["a"])


def best(comfy, redness, images, keep=2, **inputs):
    return comfy.run(
        "HyperNoise_BestOfN",
        images=images,
        reward=[redness],
        prompt=["a"],
        keep=[keep],
        **inputs,
    )


def test_the_best_come_first_with_their_latents_places_and_seeds(comfy, redness, images):
    latents = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 32, 2, 2)
    order = [2, 0, 3, 1]
    kept, latent, seeds, scores = best(
        comfy, redness, [images[order]], latents=[{"samples": latents}], seeds=[7]
    )
    assert torch.equal(kept, images[[3, 2]])
    assert latent["samples"][:, 0, 0, 0].tolist() == [2, 0]
    assert latent["batch_index"] == [2, 0]
    assert seeds == [7, 7] and scores == pytest.approx([2, 4 / 3])


def test_a_list_of_batches_keeps_each_one_s_seed_and_place(comfy, redness, images):
    latents = [{"samples": torch.zeros(2, 32, 2, 2)}] * 2
    _, latent, seeds, _ = best(
        comfy, redness, [images[:2], images[2:]], latents=latents, seeds=[10, 11]
    )
    assert latent["batch_index"] == [1, 0] and seeds == [11, 11]
    _, nothing, none, _ = best(comfy, redness, [images])
    assert nothing is None and none == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"keep": 5}, "keep is 5, but there are only 4"),
        ({"seeds": [1, 2]}, "2 seeds for 4 images"),
        ({"latents": [{"samples": torch.zeros(3, 4, 2, 2)}]}, "3 latents for 4 images"),
    ],
)
def test_what_does_not_fit_is_refused(comfy, redness, images, inputs, message):
    with pytest.raises(ValueError, match=message):
        best(comfy, redness, [images], **inputs)


def test_seeds_count_up(comfy):
    assert comfy.run("HyperNoise_Seeds", seed=5, count=3) == ([5, 6, 7],)


def test_a_comparison_gives_win_rate_interval_and_plot(comfy, redness, images):
    order = [1, 2, 3, 0]
    rate, plot, report = comfy.run(
        "HyperNoise_CompareImages",
        first=[images], second=[images[order]], reward=[redness], prompt=["a"],
    )  # fmt: skip
    assert rate == 0.75
    assert "75.0% of 4 pairs (95% confidence: 30.1% to 95.4%)" in report
    assert plot.ndim == 4 and plot.std() > 0.05
    with pytest.raises(ValueError, match="4 images in first and 3 in second"):
        comfy.run(
            "HyperNoise_CompareImages",
            first=[images], second=[images[:3]], reward=[redness], prompt=["a"],
        )  # fmt: skip


def search(comfy, loaded, reward, noise, model=None, **settings):
    settings = {"iterations": 8, "learning_rate": 5.0, "max_grad_norm": 0.1, **settings}
    return comfy.run(
        "HyperNoise_ReNO",
        noise=noise,
        model=model or loaded.model,
        positive=loaded.prompt,
        latent=loaded.latent,
        vae=loaded.vae,
        reward=reward,
        prompt=PROMPT,
        penalty=0.01,
        patience=0,
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
    assert all(v.equal(weights[k]) for k, v in loaded.network.state_dict().items())
    assert not any(m._forward_hooks for m in loaded.network.modules())


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
    with pytest.raises(ValueError, match="the sampler's are"):
        found.generate_noise({"samples": torch.zeros(1, 8, 4, 4)})


def test_an_interrupt_ends_the_search_and_leaves_the_weights(comfy, loaded, reward, noise):
    import comfy.model_management as management

    inference = [p.is_inference() for p in loaded.network.parameters()]
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        search(comfy, loaded, reward, noise)
    assert [p.is_inference() for p in loaded.network.parameters()] == inference


def search_in_stand_in(comfy, built):
    from hypernoise.hypernoise_core.reno import RenoConfig

    rewards = comfy.run("HyperNoise_LoadReward", reward="Redness (redness)", weight=1.0)[0]

    class Vae:
        """Shows the first three channels."""

        vae_dtype = torch.float32
        first_stage_model = torch.nn.Module()
        patcher = comfy.ours("nodes.comfy_model").manage(torch.nn.Identity())

    Vae.first_stage_model.decode = lambda latents: latents[:, :3].repeat(1, 1, 8, 8)
    return comfy.ours("nodes.noise_search").search(
        built.model, built.positive, Vae, rewards, PROMPT, built.noise, 0,
        RenoConfig(iterations=5), lambda *step: None,
    )  # fmt: skip


def test_gradients_pass_a_network_of_comfyui_s_own(comfy, stand_in):
    """Whose weights are made in inference mode, as ComfyUI's loaders do."""
    built = stand_in("sd_turbo", batch=2)
    assert all(p.is_inference() for p in built.model.model.diffusion_model.parameters())
    result = search_in_stand_in(comfy, built)
    assert (result.scores > result.history[0]).all()


def test_a_network_without_a_gradient_is_named(comfy, stand_in):
    """ComfyUI's FLUX overwrites what its gradient would need."""
    import comfy.model_management as management

    with pytest.raises(TypeError, match="no gradient through Flux"):
        search_in_stand_in(comfy, stand_in("flux"))
    assert not management.in_training
