"""Win rates and how sure they are."""

import pytest
import torch

from hypernoise.hypernoise_core.rewards import compare


def test_win_rate_counts_ties_half():
    result = compare(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 4.0]))
    assert result.win_rate == pytest.approx(0.625)
    assert result.mean_difference == pytest.approx(0.25)
    assert result.pairs == 4


@pytest.mark.parametrize(
    ("wins", "pairs", "low", "high"),
    [(9, 10, 0.596, 0.982), (0, 10, 0.0, 0.278), (1, 1, 0.207, 1.0), (50, 100, 0.404, 0.596)],
)
def test_the_interval_is_wilson_s(wins, pairs, low, high):
    """Against scipy's binomtest(...).proportion_ci(method="wilson")."""
    from scipy.stats import binomtest

    second = torch.tensor([1.0] * wins + [-1.0] * (pairs - wins))
    result = compare(torch.zeros(pairs), second)
    theirs = binomtest(wins, pairs).proportion_ci(method="wilson")
    assert (result.low, result.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert (result.low, result.high) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (2, 3)])
def test_what_is_no_pair_is_refused(first, second):
    with pytest.raises(ValueError, match="takes pairs"):
        compare(torch.zeros(first), torch.zeros(second))
