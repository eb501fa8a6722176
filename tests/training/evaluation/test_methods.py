"""Methods: the same noise, all passes counted, and nothing left behind in the generator."""

from dataclasses import replace

import pytest
import torch

from hypernoise.hypernoise_core.adapter import load_adapter
from hypernoise.hypernoise_core.generate import encode_prompts, generate
from hypernoise.hypernoise_core.hypernetwork import noise_penalty
from hypernoise.hypernoise_core.reno import RenoConfig
from hypernoise.tests.training.evaluation.runs import (
    PROMPTS,
    new_lora,
)
from hypernoise.training.embedded_models import EMBEDDED_ADAPTER
from hypernoise.training.evaluation import methods


@pytest.mark.parametrize("steps", [1, 2])
def test_a_search_starts_from_the_image_that_it_improves(task, hypernetwork, steps):
    task = replace(task, steps=steps)
    base = methods.measure(task, methods.base)
    ours = methods.measure(task, methods.hypernoise(hypernetwork))
    cold = methods.measure(task, methods.reno(2))
    warm = methods.measure(task, methods.reno(2, hypernetwork))
    # What is found is never worse than the start, so it is at least the image of the same noise.
    assert (cold.reward >= base.reward - 1e-3).all() and cold.reward.sum() > base.reward.sum()
    assert (warm.reward >= ours.reward - 1e-3).all() and warm.reward.sum() > ours.reward.sum()
    assert warm.images.shape == base.images.shape == (3, 3, 64, 64)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_search_sees_the_images_of_its_noise_at_every_number_of_steps(task, steps):
    """Also where the sampler draws noise between the steps."""
    task = replace(task, steps=steps).rows(slice(2))
    seen: list[torch.Tensor] = []
    methods.search(task, RenoConfig(iterations=1), on_step=lambda _, made, __: seen.append(made))
    torch.testing.assert_close(seen[0], methods.base(task).images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4])
def test_passes_are_counted_per_image(task, hypernetwork, steps):
    task = replace(task, steps=steps)
    texts = {prompt: [prompt, "a green circle"] for prompt in PROMPTS}
    encode = lambda prompts: encode_prompts(task.pipeline, prompts)  # noqa: E731
    expected = {
        methods.base: (steps, 0),
        methods.hypernoise(hypernetwork): (steps + 1, 0),
        methods.finetune(new_lora(task, 0.1)): (steps, 0),
        methods.best_of(3): (3 * steps, 0),
        methods.reno(2): (3 * steps, 2 * steps),
        methods.reno(1, hypernetwork): (2 * steps + 1, steps),
        methods.prompt_optimisation(texts, encode): (2 * steps, 0),
    }
    for method, passes in expected.items():
        result = methods.measure(task, method)
        assert (result.forward_passes, result.backward_passes) == passes
        assert result.seconds_per_image > 0
    assert not task.network._forward_hooks


def test_best_of_n_chooses_by_the_weighted_rewards_and_begins_with_base(task):
    seeds = [[seed + k * methods._CANDIDATE_STRIDE for seed in task.seeds] for k in range(3)]
    rewards = torch.stack([task.score(replace(task, seeds=s).generate().images) for s in seeds])
    chosen = methods.measure(task, methods.best_of(3))
    assert torch.allclose(chosen.reward, rewards.max(0).values, atol=1e-4)
    assert torch.allclose(
        chosen.reward, chosen.scores["tiny-preference"] + 0.5 * chosen.scores["redness"]
    )
    assert torch.equal(methods.best_of(1)(task).images, methods.base(task).images)


def test_a_lora_changes_the_images_while_its_method_runs_and_leaves_nothing(task):
    base = methods.base(task).images
    torch.testing.assert_close(methods.finetune(new_lora(task, 0))(task).images, base)
    assert not torch.allclose(methods.finetune(new_lora(task, 0.1))(task).images, base, atol=0.01)
    assert torch.equal(methods.base(task).images, base)


def test_prompt_optimisation_takes_the_paraphrase_that_the_prompt_likes_best(task):
    encode = lambda prompts: encode_prompts(task.pipeline, prompts)  # noqa: E731
    alone = methods.prompt_optimisation({p: [p] for p in PROMPTS}, encode)
    assert torch.allclose(alone(task).images, methods.base(task).images, atol=1e-5)
    texts = {prompt: ["a purple triangle", prompt, "a blue circle"] for prompt in PROMPTS}
    texts[PROMPTS[0]] = ["a purple triangle", PROMPTS[0]]  # their numbers may differ
    made = methods.prompt_optimisation(texts, encode)(task).images
    for row, prompt in enumerate(PROMPTS):
        images = torch.cat(
            [
                generate(task.pipeline, [text], seeds=[task.seeds[row]], height=64, width=64).images
                for text in texts[prompt]
            ]
        )
        rewards = task.rewards.score(images, [prompt] * len(images))
        assert torch.allclose(made[row], images[rewards.argmax()], atol=1e-4)


def test_f_squared_is_that_of_the_hypernetworks_output(task, hypernetwork):
    result = methods.measure(task, methods.hypernoise(hypernetwork))
    delta = task.generate(hypernetwork).delta
    assert torch.allclose(result.f_squared, noise_penalty(delta))
    assert (result.f_squared > 0).all()
    assert methods.measure(task, methods.base).f_squared is None
    instead = load_adapter(EMBEDDED_ADAPTER)
    instead.metadata = replace(instead.metadata, replaces_noise=True)
    replaced = methods.measure(task, methods.hypernoise(instead))
    torch.testing.assert_close(replaced.f_squared, result.f_squared, rtol=1e-4, atol=0)
    assert not torch.allclose(replaced.images, result.images, atol=0.01)
