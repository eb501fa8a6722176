"""Gradient ascent on the noise: it climbs, keeps the best, and images do not mix."""

import pytest
import torch

from hypernoise.hypernoise_core.reno import RenoConfig, norm_penalty, optimise_noise

SHAPE = (4, 8, 8)


def generate(x):
    """Images from the first three channels."""
    return torch.sigmoid(x[:, :3])


def redness(images):
    return 10 * (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def noise(*seeds):
    return torch.cat(
        [torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )


def test_it_climbs_and_says_how():
    start = noise(0, 1)
    result = optimise_noise(start, generate, redness, RenoConfig(iterations=20))
    assert (result.scores > redness(generate(start)) + 0.5).all()
    torch.testing.assert_close(result.history[0], redness(generate(start)))
    assert result.history.shape == (21, 2)
    torch.testing.assert_close(result.images, generate(result.noise))
    torch.testing.assert_close(result.scores, redness(result.images))


def test_the_noise_given_stays_as_it_is():
    start = noise(0)
    before = start.clone()
    optimise_noise(start, generate, redness, RenoConfig(iterations=2))
    assert torch.equal(start, before)


def test_the_first_step_is_nesterov_s():
    """(1 + momentum) x learning rate along the clipped gradient."""
    config = RenoConfig(iterations=1, learning_rate=2.0, penalty_weight=0.0)
    start = noise(3)
    result = optimise_noise(start, generate, redness, config)
    moved = (result.noise - start).norm().item()
    assert moved == pytest.approx(1.9 * 2.0 * 0.1, rel=1e-4)


def test_an_image_is_searched_as_if_it_were_alone():
    config = RenoConfig(iterations=5)
    together = optimise_noise(noise(0, 1), generate, redness, config)
    alone = [optimise_noise(noise(seed), generate, redness, config).noise for seed in (0, 1)]
    torch.testing.assert_close(together.noise, torch.cat(alone))


def test_the_best_is_kept_where_the_search_gets_worse():
    """A step so large that it overshoots the top."""

    def near_zero(images):
        return -(images - 0.5).square().mean((1, 2, 3))

    config = RenoConfig(iterations=10, learning_rate=1e4)
    result = optimise_noise(noise(0, 1), generate, near_zero, config)
    torch.testing.assert_close(result.scores, result.history.max(0).values)
    torch.testing.assert_close(near_zero(generate(result.noise)), result.scores)


def test_it_stops_early_where_nothing_rises():
    config = RenoConfig(iterations=30, patience=3)
    result = optimise_noise(noise(0), generate, lambda x: x.sum((1, 2, 3)) * 0, config)
    assert len(result.history) == 4


def test_the_search_goes_on_while_any_image_still_rises():
    """One image climbs to the end, the other has nothing to climb."""

    def first_only(images):
        return redness(images) * torch.tensor([1.0, 0.0])

    config = RenoConfig(iterations=12, patience=2)
    result = optimise_noise(noise(0, 1), generate, first_only, config)
    assert len(result.history) == 13
    assert result.scores[0] > result.history[0, 0] and result.scores[1] == 0


def test_the_penalty_pulls_the_norm_to_where_noise_lies():
    likely = (torch.tensor(SHAPE).prod() - 1).sqrt()
    start = 1.2 * noise(0)
    free, held = (
        optimise_noise(
            start, generate, redness, RenoConfig(iterations=30, penalty_weight=weight)
        ).noise.norm()
        for weight in (0.0, 1.0)
    )
    assert (held - likely).abs() < 0.5 * (free - likely).abs()


def test_the_penalty_is_least_at_the_likeliest_norm_and_finite_in_float16():
    z = noise(0)
    d = z[0].numel()
    norms = torch.linspace(0.5, 1.5, 101) * (d - 1) ** 0.5
    values = torch.stack([norm_penalty(z / z.norm() * norm)[0] for norm in norms])
    assert norms[values.argmin()] == pytest.approx((d - 1) ** 0.5)
    # The square of the norm has a chi-square distribution; the penalty leaves out a constant alone.
    log_density = torch.distributions.Chi2(d).log_prob(norms**2) + (2 * norms).log()
    torch.testing.assert_close(values - values[0], log_density[0] - log_density, rtol=0, atol=0.01)
    large = torch.randn(2, 32, 64, 64).half()
    assert torch.isfinite(norm_penalty(large)).all()


def test_a_score_that_is_no_number_ends_the_search():
    with pytest.raises(ValueError, match="after 0 iterations"):
        optimise_noise(noise(0), generate, lambda x: x.sum((1, 2, 3)) / 0 * 0, RenoConfig())


def test_what_the_callback_raises_ends_the_search():
    seen = []

    def on_step(step, images, scores):
        seen.append((step, tuple(images.shape), tuple(scores.shape)))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimise_noise(noise(0), generate, redness, RenoConfig(), on_step)
    assert seen == [(step, (1, 3, 8, 8), (1,)) for step in range(3)]


@pytest.mark.parametrize(
    "bad",
    [{"iterations": 0}, {"learning_rate": -1}, {"max_grad_norm": 0}, {"penalty_weight": -1}]
    + [{"patience": -1}, {"learning_rate": float("nan")}],
)
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RenoConfig(**bad)


def test_gradients_pass_the_stock_pipeline_of_every_family(tiny):
    """As `hypernoise reno` runs it: one step of the frozen generator, then its decoder."""

    def from_pipeline(x):
        latents = tiny.family.denoise(tiny.pipeline, x, tiny.conditioning, 1)
        return tiny.family.decode(tiny.pipeline, latents)

    result = optimise_noise(tiny.noise, from_pipeline, redness, RenoConfig(iterations=4))
    assert (result.scores > result.history[0]).all()
