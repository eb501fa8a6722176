"""tiny-preference as a reward: differentiable, batch-independent, clear about bad input."""

import pytest
import torch

from hypernoise.hypernoise_core.rewards import REWARDS, TinyPreference, get_reward


@pytest.fixture(scope="module")
def reward():
    return TinyPreference.load()


def test_gradient_reaches_the_image_and_no_weight(reward):
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    reward(images, ["a red circle", "two blue squares"]).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in reward.parameters())


def test_a_score_does_not_depend_on_the_batch(reward):
    images, prompts = torch.rand(3, 3, 64, 64), ["a circle", "four red squares", "a white circle"]
    together = reward(images, prompts)
    alone = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_other_sizes_are_resized(reward):
    assert reward(torch.rand(1, 3, 128, 128), ["a circle"]).shape == (1,)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.rand(2, 3, 64, 64), ["a circle"], "1 prompts for 2 images"),
        (torch.rand(0, 3, 64, 64), [], r"\(0, 3, 64, 64\)"),
        (torch.rand(1, 4, 64, 64), ["a circle"], r"\(1, 4, 64, 64\)"),
    ],
)
def test_bad_batches_are_refused(reward, images, prompts, message):
    with pytest.raises(ValueError, match=message):
        reward(images, prompts)


def test_missing_weights_name_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        TinyPreference.load(tmp_path)


def test_rewards_are_found_by_name():
    assert all(get_reward(cls.name) is cls for cls in REWARDS)
    with pytest.raises(ValueError, match="choose from tiny-preference"):
        get_reward("niceness")
