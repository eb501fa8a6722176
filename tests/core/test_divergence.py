"""The KL of the modulated noise: its terms, their estimates, and the size of f's Jacobian."""

import copy
import math

import pytest
import torch
from torch import Tensor

from hypernoise.hypernoise_core.divergence import (
    exact_kl_terms,
    kl_bound_gap,
    kl_terms,
    lipschitz_estimate,
)
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork, predict_change

COPIES = 8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_matrix(d: int, norm: float) -> Tensor:
    """(d, d) of that spectral norm, not symmetric."""
    matrix = torch.randn(d, d, generator=seeded())
    return norm * matrix / torch.linalg.matrix_norm(matrix, 2)


def linear(matrix: Tensor, shift: float = 0.0):
    return lambda x: (x.flatten(1) @ matrix.T + shift).view_as(x)


def balanced_noise(d: int) -> Tensor:
    """2d noises whose mean is exactly 0 and whose covariance is exactly I."""
    axes = math.sqrt(d) * torch.eye(d)
    return torch.cat([axes, -axes]).view(2 * d, 1, 1, d)


def standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))


def as_map(tiny, f: NoiseHypernetwork, copies: int = 1, strength: float = 1.0):
    """f as a map of noise alone, of `copies` of the noises one after the other."""
    conditioning = {
        name: tensor.repeat(copies, *(1,) * (tensor.ndim - 1))
        for name, tensor in tiny.conditioning.items()
    }
    return lambda x: predict_change(f, tiny.network, x, conditioning, strength).delta


@pytest.mark.parametrize("norm", [0.5, 3.0])
def test_a_linear_f_gives_the_kl_between_two_gaussians(norm):
    d, shift = 5, 0.7
    matrix = random_matrix(d, norm)
    got = exact_kl_terms(linear(matrix, shift), balanced_noise(d)).kl.mean()
    gaussian = torch.distributions.MultivariateNormal
    a = torch.eye(d) + matrix
    modulated = gaussian(torch.full((d,), shift), a @ a.T)
    expected = torch.distributions.kl_divergence(modulated, gaussian(torch.zeros(d), torch.eye(d)))
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("norm", [0.3, 0.9, 3.0])
def test_estimates_are_within_their_error_even_where_a_power_series_diverges(norm):
    f, noise = linear(random_matrix(32, norm), 0.7), torch.randn(200, 2, 4, 4, generator=seeded())
    got = kl_terms(f, noise, steps=32, generator=seeded(1))
    expected = exact_kl_terms(f, noise)
    torch.testing.assert_close(got.l2, expected.l2)
    for name in ("trace", "log_det", "remainder"):
        error = getattr(got, name) - getattr(expected, name)
        assert abs(error.mean().item()) < 4 * standard_error(error), name


def test_shared_probes_cancel_most_of_the_error_of_the_remainder():
    f, noise = linear(random_matrix(64, 0.1)), torch.randn(100, 1, 8, 8, generator=seeded())
    got = kl_terms(f, noise, generator=seeded(1))
    assert got.remainder.std() < 0.15 * got.trace.std()


def test_several_probes_give_their_mean():
    f, noise = linear(random_matrix(16, 0.5)), torch.randn(2, 1, 4, 4, generator=seeded())
    together = kl_terms(f, noise, probes=3, generator=seeded(1))
    one_after_the_other = seeded(1)
    single = [kl_terms(f, noise, generator=one_after_the_other) for _ in range(3)]
    for name in ("trace", "log_det", "kl"):
        mean = torch.stack([getattr(estimate, name) for estimate in single]).mean(0)
        torch.testing.assert_close(getattr(together, name), mean)


def test_few_steps_already_give_what_all_steps_give():
    f, noise = linear(random_matrix(64, 0.8)), torch.randn(3, 1, 8, 8, generator=seeded())
    few, every = (kl_terms(f, noise, steps=n, generator=seeded(1)).log_det for n in (12, 64))
    torch.testing.assert_close(few, every, rtol=0, atol=1e-2)


@pytest.mark.parametrize("factor", [-0.9, -0.1, 1e-3, 0.5, -1.5])
def test_a_scaling_of_the_noise_has_its_known_terms(factor):
    """One Lanczos step is all there is to take; -1.5 turns the noise round."""
    d, noise = 64, torch.randn(3, 1, 8, 8, generator=seeded())
    got = kl_terms(lambda x: factor * x, noise)
    torch.testing.assert_close(got.l2, 0.5 * factor**2 * noise.double().flatten(1).square().sum(1))
    torch.testing.assert_close(got.trace, torch.full_like(got.trace, d * factor))
    log_det = d * math.log(abs(1 + factor))
    torch.testing.assert_close(
        got.log_det, torch.full_like(got.log_det, log_det), rtol=1e-5, atol=1e-5
    )
    lipschitz = lipschitz_estimate(lambda x: factor * x, noise)
    torch.testing.assert_close(lipschitz, torch.full_like(lipschitz, abs(factor)))


def test_the_remainder_s_share_tells_when_the_l2_term_is_not_the_kl():
    """For f = -c x it is known: the more f contracts, the more of the KL the L2 term misses."""
    noise = balanced_noise(4)
    for c in (0.01, 0.5, 0.99):
        remainder = -c - math.log(1 - c)
        share = remainder / (0.5 * c**2 + remainder)
        got = kl_terms(lambda x, c=c: -c * x, noise).remainder_share
        assert got == pytest.approx(share, rel=1e-2)


def test_a_shift_of_the_noise_has_its_l2_term_as_kl():
    noise = torch.randn(3, 4, 8, 8, generator=seeded())
    for estimate in (kl_terms, exact_kl_terms):
        got = estimate(lambda x: torch.full_like(x, 0.5), noise)
        torch.testing.assert_close(got.kl, torch.full_like(got.kl, 256 * 0.5**2 / 2))
        assert got.remainder_share == 0


def test_a_new_hypernetwork_moves_nothing(tiny):
    f = NoiseHypernetwork.initialise(tiny.network, tiny.family, rank=2, alpha=2)
    got = kl_terms(as_map(tiny, f), tiny.noise, steps=3)
    lipschitz = lipschitz_estimate(as_map(tiny, f), tiny.noise, iterations=3)
    for values in (got.l2, got.trace, got.log_det, lipschitz):
        assert torch.equal(values, torch.zeros(3, dtype=torch.float64))
    assert math.isnan(got.remainder_share)


def bend(x: Tensor) -> Tensor:
    """A contraction of points (N, d) that mixes their coordinates and moves some more than others;
    its Lipschitz constant is below 0.8."""
    return 0.8 * torch.sin(x.flip(1) * 0.6 + x * 0.4 + 0.5)


def kl_by_quadrature(d: int) -> float:
    """KL of x + bend(x) on a grid of modulated points y, whose x is found by iteration."""
    axis = torch.linspace(-7, 7, 701, dtype=torch.float64)
    y = torch.stack(torch.meshgrid(*[axis] * d, indexing="ij"), -1)
    x = y.clone()
    for _ in range(200):
        x = y - bend(x.view(-1, d)).view_as(y)
    spacing = float(axis[1] - axis[0])
    columns = [torch.gradient(x, spacing=spacing, dim=i)[0] for i in range(d)]
    density = torch.distributions.Normal(0, 1)
    prior, start = (density.log_prob(points).sum(-1) for points in (y, x))
    log_density = start + torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    return float((log_density.exp() * (log_density - prior)).sum() * spacing**d)


@pytest.mark.parametrize("d", [1, 2])
def test_a_nonlinear_f_gives_the_kl_of_its_density(d):
    noise = torch.randn(100_000, 1, 1, d, generator=seeded())
    got = kl_terms(lambda x: bend(x.flatten(1)).view_as(x), noise, steps=d, generator=seeded(1))
    expected = kl_by_quadrature(d)
    tolerance = 4 * standard_error(got.kl)
    assert abs(got.kl.mean().item() - expected) < tolerance
    assert abs(got.l2.mean().item() - expected) > 2 * tolerance  # the L2 term alone is not it


def test_estimates_on_a_network_agree_with_its_whole_jacobian(tiny):
    f = tiny.hypernetwork().requires_grad_(False)
    expected = exact_kl_terms(as_map(tiny, f, strength=0.3), tiny.noise)
    copies = tiny.noise.repeat(COPIES, 1, 1, 1)
    got = kl_terms(as_map(tiny, f, COPIES, strength=0.3), copies, generator=seeded(1))
    for name in ("trace", "log_det", "remainder"):
        error = getattr(got, name) - getattr(expected, name).repeat(COPIES)
        assert abs(error.mean().item()) < 4 * standard_error(error), name


def test_the_lipschitz_estimate_is_the_largest_singular_value(tiny):
    f = as_map(tiny, tiny.hypernetwork().requires_grad_(False))
    got = lipschitz_estimate(f, tiny.noise, generator=seeded())
    # Images do not mix, so that the derivative of their sum has the Jacobian of each.
    whole = torch.autograd.functional.jacobian(lambda x: f(x).sum(0), tiny.noise)
    d = tiny.noise[0].numel()
    exact = torch.linalg.matrix_norm(whole.reshape(d, -1, d).transpose(0, 1), 2)
    torch.testing.assert_close(got, exact.double(), rtol=1e-3, atol=0)


def test_more_iterations_raise_the_lipschitz_estimate():
    f, noise = linear(random_matrix(64, 2.0)), torch.randn(5, 1, 8, 8, generator=seeded())
    few, more, most = (
        lipschitz_estimate(f, noise, iterations=n, generator=seeded(1)) for n in (2, 4, 64)
    )
    assert (few < more).all() and (more < most).all()
    torch.testing.assert_close(most, torch.full_like(most, 2.0))


def test_the_remainder_of_a_contraction_is_within_the_paper_s_gap():
    for norm in (0.2, 0.9):
        f, noise = linear(random_matrix(16, norm)), torch.randn(4, 1, 4, 4, generator=seeded())
        gap = kl_bound_gap(lipschitz_estimate(f, noise, iterations=16), 16)
        assert (exact_kl_terms(f, noise).remainder.abs() <= gap).all()
    # It is reached where the noise shrinks to 1 - L of itself.
    shrunk = exact_kl_terms(lambda x: -0.9 * x, noise).remainder
    gap = kl_bound_gap(torch.full_like(shrunk, 0.9), 16)
    torch.testing.assert_close(shrunk, gap, rtol=1e-5, atol=0)


def test_there_is_no_gap_for_a_lipschitz_constant_of_1_or_more():
    gap = kl_bound_gap(torch.tensor([0.0, 0.5, 1.0, 3.0]), 10)
    expected = torch.tensor([0.0, 10 * (math.log(2) - 0.5), math.inf, math.inf])
    torch.testing.assert_close(gap, expected)


def test_a_half_precision_network_has_nearly_the_same_terms(tiny, make_tiny):
    half = make_tiny(tiny.family.name)
    half.pipeline.to(torch.bfloat16)
    f = tiny.hypernetwork().requires_grad_(False)
    got, expected = (
        kl_terms(as_map(case, f), tiny.noise, steps=5, generator=seeded()) for case in (half, tiny)
    )
    scale = expected.kl.abs().mean()
    for name in ("l2", "trace", "log_det"):
        error = (getattr(got, name) - getattr(expected, name)).abs().mean()
        assert error < 0.05 * scale, name


def test_checkpointed_blocks_change_nothing(tiny, make_tiny):
    checkpointed = make_tiny(tiny.family.name)
    checkpointed.network.enable_gradient_checkpointing()
    checkpointed.network.train()  # some blocks checkpoint in training only; there is no dropout
    f = tiny.hypernetwork()
    got, expected = (
        kl_terms(as_map(case, f), tiny.noise, steps=3, generator=seeded())
        for case in (checkpointed, tiny)
    )
    torch.testing.assert_close(got.kl, expected.kl, rtol=1e-4, atol=1e-3)


def test_measuring_leaves_no_gradient_and_works_without_one(tiny):
    f = tiny.hypernetwork()
    noise = copy.deepcopy(tiny.noise)
    with torch.no_grad():
        got = kl_terms(as_map(tiny, f), tiny.noise, steps=2, generator=seeded())
    again = kl_terms(as_map(tiny, f), tiny.noise, steps=2, generator=seeded())
    assert torch.equal(got.kl, again.kl)
    assert torch.equal(noise, tiny.noise) and tiny.noise.grad is None
    assert all(parameter.grad is None for parameter in f.parameters())


def test_counts_below_1_are_refused_by_name():
    noise = torch.zeros(1, 1, 2, 2)
    for bad in ({"probes": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            kl_terms(torch.sin, noise, **bad)
    with pytest.raises(ValueError, match="iterations"):
        lipschitz_estimate(torch.sin, noise, iterations=0)
