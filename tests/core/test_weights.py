"""Log-weights: sizes, means, and resampling whose expectation is the probability it was given."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilting import weights
from tilting.select import Memory, Multinomial, SelectionInput, Smc
from tilting.types import TiltingError

log_weights = st.lists(st.floats(-30, 30), min_size=1, max_size=12).map(lambda v: torch.tensor([v], dtype=torch.float64))
P = torch.tensor([[0.05, 0.0, 0.4, 0.3, 0.25]], dtype=torch.float64)


@given(log_weights, st.floats(-500, 500))
def test_ess_is_between_one_and_n_and_knows_no_scale(log_w, shift):
    n = log_w.shape[1]
    ess = weights.ess(log_w).item()
    assert 1 - 1e-9 <= ess <= n + 1e-9
    w = (log_w - log_w.max()).exp()
    assert ess == pytest.approx((w.sum() ** 2 / w.square().sum()).item(), rel=1e-9)
    assert weights.ess(log_w + shift).item() == pytest.approx(ess, rel=1e-6)


def test_ess_at_its_ends():
    assert weights.ess(torch.zeros(1, 7)).item() == pytest.approx(7)
    assert weights.ess(torch.tensor([[0.0, -1e4, -1e4]])).item() == pytest.approx(1)
    assert weights.ess(torch.tensor([[0.0, 0.0, -1e4, -1e4]])).item() == pytest.approx(2)


@given(log_weights)
def test_log_mean_and_normalise(log_w):
    direct = sum(math.exp(v) for v in log_w[0].tolist()) / log_w.shape[1]
    assert weights.log_mean(log_w).item() == pytest.approx(math.log(direct), abs=1e-9)
    w = weights.normalise(log_w)
    assert w.sum().item() == pytest.approx(1, rel=1e-12)
    assert torch.allclose(w.log() - w.log()[:, :1], log_w - log_w[:, :1], atol=1e-8)


def test_log_mean_does_not_overflow():
    assert weights.log_mean(torch.tensor([[1000.0, 1000.0 + math.log(3)]], dtype=torch.float64)).item() == pytest.approx(
        1000 + math.log(2)
    )


def test_multinomial_draws_have_the_given_law():
    draws = 40_000
    uniforms = torch.rand(1, draws, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    count = torch.bincount(weights.multinomial(P, uniforms)[0], minlength=5).double()
    assert count[1] == 0  # what has no probability is never drawn
    seen = P[0] > 0
    chi = ((count - draws * P[0]).square()[seen] / (draws * P[0][seen])).sum().item()
    assert chi < 21.1  # 1 - 1e-4 quantile of chi-square with 3 degrees of freedom


def test_multinomial_inverts_the_cumulative_sum_exactly():
    uniforms = torch.tensor([[0.0, 0.0499, 0.0501, 0.4499, 0.4501, 0.7499, 0.7501, 0.9999]], dtype=torch.float64)
    assert weights.multinomial(P, uniforms)[0].tolist() == [0, 0, 2, 2, 3, 3, 4, 4]
    assert weights.multinomial(P.float(), uniforms)[0].tolist() == [0, 0, 2, 2, 3, 3, 4, 4]


def test_multinomial_takes_the_next_at_an_edge_and_the_last_at_the_end_of_rows_that_sum_to_anything():
    p = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
    uniforms = torch.tensor([[0.0, 0.25, 0.5, 0.999, 1.0]], dtype=torch.float64)  # 1 is what rounding makes of .99999...
    assert weights.multinomial(p, uniforms)[0].tolist() == [0, 1, 2, 2, 2]
    assert weights.multinomial(4 * p, uniforms)[0].tolist() == [0, 1, 2, 2, 2]
    assert weights.multinomial(p / 4, uniforms)[0].tolist() == [0, 1, 2, 2, 2]


SSP = [
    ((4, 12), (0, 0.4), (1, 1)),  # residuals .5 + .5 = 1: below (1 - .5) / (2 - 1) the first is rounded up
    ((4, 12), (0, 0.5), (0, 2)),  # at it the second
    ((1, 3, 4, 8), (0, 0.2, 0, 0), (1, 0, 1, 2)),  # .25 and .75: the first by (1 - .75) / (2 - 1)
    ((1, 3, 4, 8), (0, 0.3, 0, 0), (0, 1, 1, 2)),
    ((3, 3, 2, 8), (0, 0.4, 0.4, 0), (1, 1, 0, 2)),  # .75 + .75: by (1 - .75) / (2 - 1.5) one is up, the other keeps .5
    ((3, 3, 2, 8), (0, 0.4, 0.6, 0), (1, 0, 1, 2)),
    ((3, 3, 2, 8), (0, 0.6, 0.4, 0), (1, 1, 0, 2)),
    ((3, 3, 2, 8), (0, 0.6, 0.6, 0), (0, 1, 1, 2)),
    ((1, 1, 4, 10), (0, 0.4, 0.9, 0.4), (1, 0, 1, 2)),  # .25 + .25: by .25 / .5 the first has both, which 0 leaves it
    ((1, 1, 4, 10), (0, 0.6, 0.9, 0.4), (0, 1, 1, 2)),
    ((1, 1, 4, 10), (0, 0.4, 0.9, 0.6), (0, 0, 1, 3)),
]


@pytest.mark.parametrize(("sixteenths", "uniforms", "counts"), SSP)
def test_ssp_by_hand(sixteenths, uniforms, counts):
    p = torch.tensor([sixteenths], dtype=torch.float64) / 16
    drawn = weights.ssp(p, torch.tensor([uniforms], dtype=torch.float64))[0]
    assert drawn.tolist() == [i for i, count in enumerate(counts) for _ in range(count)]


def test_ssp_counts_are_within_one_of_their_expectation_and_have_it_for_a_mean():
    uniforms = torch.rand(20_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = weights.ssp(P.expand(len(uniforms), -1), uniforms)
    counts = torch.stack([(drawn == i).sum(1) for i in range(5)], 1).double()
    assert ((counts - 5 * P).abs() < 1).all() and (counts.mean(0) - 5 * P).abs().max() < 0.015
    third = torch.full((2, 3), 1 / 3, dtype=torch.float32)  # 3 times a third is 1 for rounding alone
    assert weights.ssp(third, torch.rand(2, 3)).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("count", [None, 3, 8])
def test_systematic_is_unbiased(count):
    """Averaged over its uniform the count of each is m p; the spread of the mean is at most .5 / sqrt(repeats)."""
    repeats, m = 20_000, count or 5
    uniforms = torch.rand(repeats, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    index = weights.systematic(P.expand(repeats, -1), uniforms, count)
    assert index.shape == (repeats, m)
    mean = torch.nn.functional.one_hot(index, 5).sum(1).double().mean(0)
    assert (mean - m * P[0]).abs().max() < 5 * 0.5 / math.sqrt(repeats)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=10).filter(lambda v: sum(v) > 0.01),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 20),
)
def test_systematic_counts_are_within_one_of_their_expectation(values, uniform, count):
    p = torch.tensor([values], dtype=torch.float64)
    p = p / p.sum()
    index = weights.systematic(p, torch.tensor([uniform], dtype=torch.float64), count)[0]
    assert index.tolist() == sorted(index.tolist())
    counts = torch.bincount(index, minlength=p.shape[1])
    for c, expected in zip(counts.tolist(), (count * p[0]).tolist(), strict=True):
        assert math.floor(expected - 1e-9) <= c <= math.ceil(expected + 1e-9)


def test_rows_are_resampled_apart():
    p = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    drawn = weights.systematic(p, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    assert drawn.tolist() == [[0, 0, 0], [2, 2, 2], [1, 1, 1]]


def test_smc_weighs_by_the_difference_and_resamples_only_the_poor():
    value = torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.0, 5.0, 0.0, 0.0]], dtype=torch.float64)
    previous = torch.tensor([[0.0, 0.0, 0.1, 0.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    before = torch.tensor([[0.0, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    memory = Memory.blank(2, 4)._replace(potential=previous / 0.5)  # what the previous value left behind
    uniforms = torch.full((2, 4), 0.5, dtype=torch.float64)
    choice = Smc(beta=0.5, ess_threshold=0.5)(SelectionInput(value, before, memory, uniforms, 0.5, 5))
    weighed = torch.tensor([[0.0, 0.4, 0.2, 0.6], [0.0, 8.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(choice.log_w[0], weighed[0])
    assert choice.parents is not None
    assert choice.parents.tolist() == [[0, 1, 2, 3], [1, 1, 1, 1]]
    assert torch.allclose(choice.log_w[1], weights.log_mean(weighed)[1].expand(4))  # the mean weight survives resampling
    first = Memory(*(m[:1] for m in memory))
    assert Smc(beta=0.5)(SelectionInput(value[:1], before[:1], first, uniforms[:1], 0.5, 5)).parents is None


def test_multinomial_selection_has_temperature():
    value = torch.tensor([[0.0, 0.1]], dtype=torch.float64)
    low = 1 / (1 + math.exp(0.1 / 0.05))  # P(first) at tau .05
    uniforms = torch.tensor([[low - 1e-6, low + 1e-6]], dtype=torch.float64)
    index = Multinomial(0.05)(SelectionInput(value, torch.zeros(1, 2), Memory.blank(1, 2), uniforms, 0.5, 5)).parents
    assert index is not None
    assert index.tolist() == [[0, 1]]


@pytest.mark.parametrize("wrong", [lambda: Multinomial(0.0), lambda: Multinomial(-1.0), lambda: Smc(beta=0.0)])
def test_temperatures_are_positive(wrong):
    with pytest.raises(TiltingError):
        wrong()
