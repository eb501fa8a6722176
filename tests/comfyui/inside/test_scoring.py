"""Score Images, Best of N and Compare Images."""

import pytest
import torch

PROMPT = "three green triangles"


def test_scores_are_the_core_s_weighted_and_their_mean(comfy, redness, images):
    scores, mean, report = comfy.run(
        "HyperNoise_ScoreImages", images=[images], reward=[redness], prompt=["a"]
    )
    assert scores == pytest.approx([0, 2 / 3, 4 / 3, 2])
    assert mean == pytest.approx(1.0)
    assert "image 3: 2 (redness 1)" in report


@pytest.mark.parametrize(
    ("prompt", "per_line", "sides", "expected"),
    [
        (["a\u2028b\n\u200b\r\nc"], True, [[2]], ["a\u2028b", "c"]),
        (["a"], False, [[2]], ["a", "a"]),
        (["a\nb"], False, [[2]], ["a\nb", "a\nb"]),
        (["a\n\n b"], True, [[2]], ["a", "b"]),
        (["a", "b"], False, [[2]], ["a", "b"]),
        (["a", "b"], False, [[2, 1]], ["a", "a", "b"]),  # a prompt for each batch
        (["a", "b"], False, [[2, 0]], ["a", "b"]),
        (["a", "b"], False, [[4], [3, 1]], ["a", "a", "a", "b"]),  # of the second side
        (["a" * 150_000 + "\n" + "b" * 150_000], True, [[2]], ["a" * 150_000, "b" * 150_000]),
    ],
)
def test_prompts_for_one_and_for_many(comfy, prompt, per_line, sides, expected):
    assert comfy.ours("nodes.scoring").prompts_for(sides, prompt, per_line) == expected


def test_a_prompt_for_each_batch_of_two_that_are_cut_otherwise_is_refused(comfy):
    with pytest.raises(ValueError, match="the batch sizes in first and second differ"):
        comfy.ours("nodes.scoring").prompts_for([[1, 3], [3, 1]], ["a", "b"], False)


@pytest.mark.parametrize(
    ("prompt", "per_line"), [(["a\nb"], True), (["a", "b"], False), (["one line"], True)]
)
def test_prompts_that_do_not_fit_are_refused(comfy, redness, images, prompt, per_line):
    with pytest.raises(ValueError, match="got . prompts for 4 images"):
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


def test_each_batch_is_scored_against_its_own_prompt(comfy, reward):
    """By all three nodes, as a list of prompts makes a sampler give a list of batches."""
    first, second = torch.rand(2, 64, 64, 3), torch.rand(2, 64, 64, 3)
    batches, prompts = {"images": [first, second]}, [PROMPT, "a red circle"]
    expected = [
        score
        for batch, prompt in zip((first, second), prompts, strict=True)
        for score in comfy.run(
            "HyperNoise_ScoreImages", images=[batch], reward=[reward], prompt=[prompt]
        )[0]
    ]
    common = {"reward": [reward], "prompt": prompts}
    scores = comfy.run("HyperNoise_ScoreImages", **batches, **common)[0]
    assert scores == pytest.approx(expected, rel=1e-5)
    kept = comfy.run("HyperNoise_BestOfN", **batches, **common, keep=[4])[3]
    assert kept == pytest.approx(sorted(expected, reverse=True), rel=1e-5)
    report = comfy.run(
        "HyperNoise_CompareImages", first=[first, second], second=[second, first], **common
    )[2]
    assert f"mean score: first {sum(expected) / 4:.4g}, second" in report


def test_what_a_resize_leaves_outside_of_0_and_1_does_not_count(comfy, redness):
    """As bicubic and Lanczos resizing do at edges."""
    red = torch.tensor([1.3, -0.2, -0.2]).expand(1, 64, 64, 3)
    scores = comfy.run("HyperNoise_ScoreImages", images=[red], reward=[redness], prompt=["a"])[0]
    assert scores == pytest.approx([2.0])


def test_a_prompt_of_which_a_reward_reads_a_part_is_warned_about(comfy, reward, caplog):
    image = torch.full((1, 64, 64, 3), 0.5)
    inputs = {"images": [image], "reward": [reward], "prompt": ["three green triangles " * 40]}
    for node, place in (("ScoreImages", 2), ("BestOfN", None)):
        caplog.clear()
        more = {"keep": [1]} if node == "BestOfN" else {}
        found = comfy.run(f"HyperNoise_{node}", **inputs, **more)
        assert "tiny-preference" in caplog.text and "tokens" in caplog.text
        assert place is None or "tokens" in found[place]


NAN = torch.full((1, 64, 64, 3), float("nan"))
GOOD = torch.full((1, 64, 64, 3), 0.5)


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        ("ScoreImages", {"images": [GOOD, GOOD, NAN]}, "images: image 2 has values from nan"),
        ("BestOfN", {"images": [GOOD, NAN], "keep": [1]}, "images: image 1 has values from nan"),
        (
            "CompareImages",
            {"first": [GOOD, GOOD], "second": [GOOD, NAN]},
            "second: image 1 has values",
        ),
        (
            "CompareImages",
            {"first": [NAN, GOOD], "second": [GOOD, GOOD]},
            "first: image 0 has values",
        ),
        (
            "ScoreImages",
            {"images": [GOOD, torch.rand(1, 8, 8, 3)]},
            "images, image 1: an image of 8",
        ),
        (
            "ScoreImages",
            {"images": [GOOD, torch.rand(3, 64, 64)]},
            "the batch with image 1 has shape .3, 64",
        ),
        ("ScoreImages", {"images": [GOOD, None]}, "images contains None instead of image 1"),
    ],
)
def test_an_image_is_named_by_its_number_in_the_whole_list_and_its_side(
    comfy, redness, node, inputs, message
):
    with pytest.raises(ValueError, match=message):
        comfy.run(f"HyperNoise_{node}", **inputs, reward=[redness], prompt=["a"])


@pytest.mark.parametrize("nothing", [[], [torch.rand(0, 64, 64, 3)]], ids=["list", "batch"])
def test_an_empty_list_and_an_empty_batch_are_named(comfy, redness, nothing):
    common = {"reward": [redness], "prompt": ["a"]}
    some = [torch.rand(1, 64, 64, 3)]
    for node, inputs, name in (
        ("ScoreImages", {"images": nothing}, "images"),
        ("BestOfN", {"images": nothing, "keep": [1]}, "images"),
        ("CompareImages", {"first": some, "second": nothing}, "second"),
    ):
        with pytest.raises(ValueError, match=f"{name} contains no images"):
            comfy.run(f"HyperNoise_{node}", **inputs, **common)
    scores = comfy.run("HyperNoise_ScoreImages", images=[*some, *nothing], **common)[0]
    assert len(scores) == 1


@pytest.mark.parametrize("name", ["reward", "prompt", "keep", "seeds", "latents"])
def test_an_empty_list_of_anything_else_is_named(comfy, redness, name):
    inputs = {"images": [torch.rand(2, 64, 64, 3)], "reward": [redness], "prompt": ["a"]}
    inputs |= {"keep": [1], name: []}
    with pytest.raises(
        ValueError, match=rf"{name}( is a list of 0|: got 0 prompts)|got 0 {name} for 2 im"
    ):
        comfy.run("HyperNoise_BestOfN", **inputs)


def test_of_two_rewards_in_a_list_none_is_left_out_silently(comfy, redness, reward, images):
    with pytest.raises(ValueError, match="Score Images: reward is a list of 2"):
        comfy.run("HyperNoise_ScoreImages", images=[images], reward=[redness, reward], prompt=["a"])


def test_images_with_and_without_alpha_are_kept_together(comfy, redness, images):
    with_alpha = torch.cat([images[:2], torch.full((2, 64, 64, 1), 0.5)], dim=-1)
    kept = best(comfy, redness, [with_alpha, images[2:]], keep=3)[0]
    assert torch.equal(kept, images[[3, 2, 1]])
    assert best(comfy, redness, [with_alpha], keep=1)[0].shape[-1] == 4
    scores = comfy.run(
        "HyperNoise_ScoreImages", images=[with_alpha, images[2:]], reward=[redness], prompt=["a"]
    )[0]
    assert len(scores) == 4


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


@pytest.mark.parametrize(("output", "name"), [(1, "latents"), (2, "seeds")])
def test_an_output_without_its_input_is_an_error_only_where_a_node_uses_it(
    comfy, redness, images, output, name
):
    """ComfyUI reads a blocker's message when it is about to run the node that uses it."""
    from comfy_execution.graph_utils import ExecutionBlocker

    found = best(comfy, redness, [images])
    assert isinstance(found[output], ExecutionBlocker)
    with pytest.raises(ValueError, match=f"Best of N .* only if its input {name} is connected"):
        str(found[output].message)


def masks(*values: float, size: int = 8) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, size, size)


def test_the_best_latents_are_what_core_s_latent_from_batch_gives(comfy, redness, images):
    """Masks (as many as images, fewer, one, none), places and every other key."""
    samples = torch.rand(4, 32, 2, 2)
    for more in (
        {"noise_mask": masks(0.1, 0.2, 0.3, 0.4)}, {"noise_mask": masks(0.1, 0.2)},
        {"noise_mask": masks(0.1, 0.2, 0.3)}, {"noise_mask": masks(0.7)}, {},
        {"batch_index": [9, 8, 7, 6], "downscale_ratio_spacial": 32, "of_another_node": "x"},
    ):  # fmt: skip
        latent = {"samples": samples, **more}
        for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
            kept = best(comfy, redness, [images[order]], keep=1, latents=[latent])[1]
            place = order.index(3)
            expected = comfy.nodes.LatentFromBatch().frombatch(latent, place, 1)[0]
            assert kept.keys() == expected.keys()
            for key, value in expected.items():
                same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
                assert same(kept[key], value), key


def test_each_of_several_latents_keeps_its_own_mask(comfy, redness, images):
    """One has none: samplers repaint all of it. One is of another size, one has no channel."""
    latents = [
        {"samples": torch.zeros(1, 32, 2, 2), "noise_mask": masks(0.25)},
        {"samples": torch.zeros(1, 32, 2, 2), "batch_index": [5], "type": "x"},
        {"samples": torch.zeros(1, 32, 2, 2), "noise_mask": masks(0.5, size=4)},
        {"samples": torch.zeros(1, 32, 2, 2), "noise_mask": masks(0.75)[:, 0]},
    ]
    kept = best(comfy, redness, list(images.split(1)), keep=4, latents=latents)[1]
    assert kept["noise_mask"].shape == (4, 1, 8, 8)
    assert kept["noise_mask"].mean(dim=(1, 2, 3)).tolist() == [0.75, 0.5, 1.0, 0.25]
    assert kept["batch_index"] == [0, 0, 5, 0] and kept["type"] == "x"
    latents[3]["type"] = "of the best"
    kept = best(comfy, redness, list(images.split(1)), keep=4, latents=latents)[1]
    assert kept["type"] == "of the best"
    kept = best(comfy, redness, list(images.split(1)), keep=1, latents=[latents[1]] * 4)[1]
    assert "noise_mask" not in kept


def test_a_mask_outlives_best_of_n(comfy, loaded, redness):
    """What lies outside of it is not repainted by the next sampler."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    latent = {"samples": torch.randn(2, loaded.vae.latent_channels, 8, 8), "noise_mask": mask}
    decoded = loaded.vae.decode(latent["samples"])
    kept = best(comfy, redness, [decoded], keep=2, latents=[latent])[1]
    changed = comfy.sample(loaded.model, loaded.prompt, kept, denoise=0.7, steps=4)
    moved = (changed - kept["samples"]).abs().mean(dim=(0, 1, 2))
    assert moved[4:].max() < 1e-4 < 0.01 < moved[:4].min()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"keep": 5}, "keep is 5, but there are only 4"),
        ({"seeds": [1, 2]}, "got 2 seeds for 4 images"),
        ({"latents": [{"samples": torch.zeros(3, 4, 2, 2)}]}, "got 3 latents for 4 images"),
        ({"latents": [None]}, "latents contains None"),
        (
            {"latents": [{"samples": torch.zeros(2, 4, n, n)} for n in (2, 3)], "keep": 3},
            "best latents differ in size",
        ),
        ({"seeds": [None]}, "Best of N: seeds is None, but it must be a whole number"),
        ({"keep": 0}, "Best of N: keep is 0, but it must be a whole number from 1 to 4096"),
    ],
)
def test_what_does_not_fit_is_refused(comfy, redness, images, inputs, message):
    with pytest.raises(ValueError, match=message):
        best(comfy, redness, [images], **inputs)


def test_a_comparison_gives_win_rate_interval_and_plot(comfy, redness, images):
    order = [1, 2, 3, 0]
    rate, plot, report = comfy.run(
        "HyperNoise_CompareImages",
        first=[images], second=[images[order]], reward=[redness], prompt=["a"],
    )  # fmt: skip
    assert rate == 0.75
    assert "75.0% of 4 pairs (95% confidence interval: 30.1% to 95.4%)" in report
    assert plot.ndim == 4 and plot.std() > 0.05
    with pytest.raises(ValueError, match="4 images in first and 3 images in second"):
        comfy.run(
            "HyperNoise_CompareImages",
            first=[images], second=[images[:3]], reward=[redness], prompt=["a"],
        )  # fmt: skip


@pytest.mark.parametrize("won", [True, False])
def test_in_the_plot_pairs_that_the_second_wins_are_green_and_the_others_red(
    comfy, redness, images, won
):
    sides = (images[:2], images[2:]) if won else (images[2:], images[:2])
    plot = comfy.run(
        "HyperNoise_CompareImages",
        first=[sides[0]], second=[sides[1]], reward=[redness], prompt=["a"],
    )[1]  # fmt: skip
    red, green, _ = plot[0, 140:].movedim(-1, 0)  # the bars of the pairs
    reds, greens = (red > green + 0.3).sum(), (green > red + 0.3).sum()
    assert (reds == 0 and greens > 1000) if won else (greens == 0 and reds > 1000)
