"""Means with honest intervals, and diversity."""

import math

import numpy as np
import pytest
import torch

from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.tests.training.evaluation.runs import PROMPTS
from hypernoise.training.evaluation import (
    methods,
    metrics,
)


def test_an_interval_covers_the_true_mean_although_images_of_a_prompt_are_alike():
    rng = np.random.default_rng(0)
    covered, trials = 0, 150
    for _ in range(trials):
        of_prompt = rng.normal(size=30)
        values = (of_prompt[:, None] + 0.3 * rng.normal(size=(30, 4))).ravel()
        found = metrics.mean(list(values), [str(i // 4) for i in range(120)])
        covered += found.low < 0 < found.high
    # Drawn image by image, about 70% would be covered.
    assert 0.88 * trials <= covered <= trials


def test_an_interval_holds_95_percent():
    """1.96 standard errors on either side, as the normal distribution has it."""
    values = np.random.default_rng(1).normal(3, 2, size=400)
    found = metrics.mean(list(values), list(map(str, range(400))))
    half = 1.96 * values.std() / 400**0.5
    assert found.value - found.low == pytest.approx(half, rel=0.05)
    assert found.high - found.value == pytest.approx(half, rel=0.05)


def test_strata_weigh_the_same_whatever_their_size():
    values, strata = [1.0, 1.0, 1.0, 0.0], ["many", "many", "many", "one"]
    found = metrics.mean(values, ["a", "b", "c", "d"], strata)
    assert found.value == 0.5
    assert (found.low, found.high) == (0.5, 0.5)  # drawn within each stratum


def test_a_single_prompt_has_no_interval():
    found = metrics.mean([1.0, 3.0], ["a", "a"])
    assert found.value == 2.0 and math.isnan(found.low) and math.isnan(found.high)
    with pytest.raises(ValueError, match="0 values"):
        metrics.mean([], [])


def test_the_kl_of_the_best_of_n_is_that_of_its_density():
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for n in (1, 2, 8, 50):
        density = n * u ** (n - 1)  # of the best one's rank among all draws
        assert metrics.best_of_kl(n) == pytest.approx(
            float((density * density.log()).mean()), abs=1e-3
        )


def test_the_recovered_share_is_unknown_without_a_gain():
    assert metrics.share_recovered(1.0, 1.5, 2.0) == 0.5
    assert metrics.share_recovered(1.0, 0.5, 2.0) == -0.5
    assert metrics.share_recovered(1.0, 1.5, 1.0) is None
    assert metrics.share_recovered(1.0, 0.8, 0.5) is None  # it loses, and so does the best


def test_diversity_is_0_for_copies_and_largest_for_opposites():
    e = torch.eye(4)
    assert metrics.diversity(torch.stack([e, e, e])) == pytest.approx(0)
    assert metrics.diversity(torch.stack([e, e.flip(0)])) == pytest.approx(1)
    assert metrics.diversity(torch.stack([e, -e])) == pytest.approx(2)
    assert metrics.diversity(e[None]) is None
    black = torch.zeros(1, 2, 3, metrics.SMALL, metrics.SMALL)
    assert metrics.pixel_diversity(torch.cat([black, black + 1])) == pytest.approx(1)
    assert metrics.pixel_diversity(torch.cat([black, black + 0.5])) == pytest.approx(0.5)
    # Pairs: black and black 0, twice black and white 1.
    assert metrics.pixel_diversity(torch.cat([black, black, black + 1])) == pytest.approx(2 / 3)


def test_features_are_those_of_the_first_clip(task):
    images = methods.base(task).images
    encoder = metrics.image_encoder(task.rewards)
    features = metrics.image_features(encoder, images, batch_size=2)
    cosine = (features * encoder.text_features(PROMPTS)).sum(-1)
    assert torch.allclose(cosine * encoder.scale, task.scores(images)["tiny-preference"], atol=1e-3)
    assert metrics.image_encoder(load_rewards({"redness": 1.0})) is None
