"""Rewards by name and weight, and scores of more images than fit at once."""

import copy

import pytest
import torch

from hypernoise.hypernoise_core.errors import RewardError
from hypernoise.hypernoise_core.reward_registry import NAMES
from hypernoise.hypernoise_core.rewards import (
    REWARDS,
    Ensemble,
    load_rewards,
    paper_weights,
    parse_weights,
    score_in_batches,
)
from hypernoise.hypernoise_core.rewards.reward import Reward
from hypernoise.training.memory import LiveBytes

PAPER = {"hps": 5.0, "imagereward": 1.0, "clip": 0.01, "pickscore": 0.05}


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("hps", {"hps": 1.0}),
        ("hps=5, clip=0.01", {"hps": 5.0, "clip": 0.01}),
        ("redness=-2", {"redness": -2.0}),
        ("paper", PAPER),
    ],
)
def test_weights_are_read(text, weights):
    assert parse_weights(text) == weights


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rewards in"),
        ("niceness=1", "choose from"),
        ("hps=much", "weight of hps is not a number"),
        ("hps=1,hps=2", "hps appears twice"),
        ("hps=inf", "weight of hps is inf; it must be finite"),
        ("hps=nan", "weight of hps is nan; it must be finite"),
    ],
)
def test_weights_that_cannot_be_read_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_weights(text)


def test_the_paper_s_weights():
    assert paper_weights() == PAPER


def test_the_names_that_settings_check_are_those_of_the_rewards():
    assert NAMES == tuple(reward.name for reward in REWARDS)


@pytest.fixture(scope="module")
def rewards():
    return load_rewards({"tiny-preference": 1.0, "redness": 3.0})


def test_scores_in_batches_are_those_of_the_whole(rewards):
    images, prompts = torch.rand(7, 3, 64, 64), [f"{n} circles" for n in range(7)]
    found = score_in_batches(rewards, images, prompts, batch_size=3)
    whole = rewards.scores(images, prompts)
    for name in ("tiny-preference", "redness"):
        torch.testing.assert_close(found[name], whole[name])
    assert not found["redness"].requires_grad


def test_a_negative_weight_asks_for_less_of_it(rewards):
    images, prompts = torch.rand(3, 3, 64, 64), ["a circle"] * 3
    redness = rewards.members["redness"]
    ensemble = Ensemble({"redness": (redness, -2.0)})
    score = redness.score(images, prompts)
    torch.testing.assert_close(ensemble.score(images, prompts), -2 * score)
    torch.testing.assert_close(ensemble.loss(images, prompts), 2 * score.mean())


class ShortOfMemory:
    """Rewards on a device that holds two images."""

    device = torch.device("cpu")
    weights = {"redness": 1.0}

    def __init__(self, rewards) -> None:
        self.rewards, self.tried = rewards, []

    def scores(self, images, prompts):
        self.tried.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.rewards.scores(images, prompts)


def test_a_batch_that_does_not_fit_into_memory_is_split(rewards):
    images, prompts = torch.rand(5, 3, 64, 64), ["a circle"] * 5
    short = ShortOfMemory(rewards)
    found = score_in_batches(short, images, prompts, batch_size=8)
    torch.testing.assert_close(found["redness"], rewards.scores(images, prompts)["redness"])
    assert short.tried == [5, 4, 2, 2, 1]


class Squares(Reward):
    """Keeps one tensor of the images' size for its backward pass."""

    @classmethod
    def load(cls, store):
        return cls()

    def score_batch(self, batch, prompts):
        return (batch.images * 1).square().flatten(1).mean(1)


def test_the_loss_gradient_is_that_of_the_losses(rewards):
    images, prompts = torch.rand(3, 3, 64, 64), ["a circle", "two squares", "a triangle"]
    leaf = images.clone().requires_grad_(True)
    rewards.image_losses(rewards.scores(leaf, prompts)).sum().backward()
    scores, gradient = rewards.loss_gradient(images, prompts)
    torch.testing.assert_close(gradient, leaf.grad)
    expected = rewards.scores(images, prompts)
    assert scores.keys() == expected.keys()
    assert all(torch.equal(scores[name], expected[name]) for name in scores)
    assert not images.requires_grad


def test_the_loss_gradient_keeps_the_activations_of_one_reward_at_a_time():
    images, prompts = torch.rand(2, 3, 64, 64), ["a circle"] * 2

    def peak(rewards):
        with LiveBytes() as live:
            rewards.loss_gradient(images, prompts)
        return live.peak

    one = peak(Ensemble({"a": (Squares(), 1.0)}))
    several = peak(Ensemble({name: (Squares(), 1.0) for name in "abcd"}))
    assert several - one < 2 * images.nbytes  # the gradient so far, and not three rewards' more


class Failing(Reward):
    """Does at each call what it is given."""

    name = title = "failing"

    def __init__(self, act) -> None:
        super().__init__()
        self.act = act

    @classmethod
    def load(cls, store):
        raise NotImplementedError

    def score_batch(self, batch, prompts):
        return self.act(batch.images.mean((1, 2, 3)))


def raising(error):
    def act(scores):
        raise error

    return act


@pytest.mark.parametrize("call", ["scores", "loss_gradient"])
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (raising(RuntimeError("no such kernel")), r"failed with RuntimeError: no such kernel \(.*"),
        (raising(ValueError("a bad prompt")), r"failed with ValueError: a bad prompt"),
        (lambda scores: scores[:, None], r"gave scores \(2, 1\) for 2 images"),
        (lambda scores: scores.sum(), r"gave scores \(\) for 2 images"),
    ],
)
def test_a_reward_that_fails_is_named(call, act, message):
    ensemble = Ensemble({"failing": (Failing(act), 1.0)})
    with pytest.raises(RewardError, match=rf"^the reward failing {message}") as raised:
        getattr(ensemble, call)(torch.rand(2, 3, 16, 16), ["a", "b"])
    copied = copy.copy(raised.value)  # rebuilt from its arguments, as in another process
    assert (str(copied), copied.name) == (str(raised.value), "failing")


@pytest.mark.parametrize("call", ["scores", "loss_gradient"])
def test_a_reward_without_memory_is_named_and_still_out_of_memory(call):
    act = raising(torch.OutOfMemoryError("CUDA out of memory"))
    ensemble = Ensemble({"failing": (Failing(act), 1.0)})
    with pytest.raises(torch.OutOfMemoryError, match="the reward failing ran out of memory: CUDA"):
        getattr(ensemble, call)(torch.rand(2, 3, 16, 16), ["a", "b"])


def test_bad_images_are_not_blamed_on_a_reward(rewards):
    with pytest.raises(ValueError, match="values from"):
        rewards.scores(torch.full((1, 3, 16, 16), 9.0), ["a"])
