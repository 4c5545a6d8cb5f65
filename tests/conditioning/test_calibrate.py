"""Calibration by hand: bins, temperatures in closed form, levels of a number, counts and scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tilting.conditioning import calibrate
from tilting.errors import TiltingError
from tilting.features.schema import Schema


def of(*first):
    """Probabilities of two classes, and the first of them as logits."""
    return torch.tensor([[p, 1 - p] for p in first], dtype=torch.float64)


def test_a_bin_holds_its_upper_edge_and_an_empty_one_has_no_means():
    found = calibrate.reliability(of(0.5, 0.6, 0.75, 1.0, 0.2), torch.tensor([0, 1, 0, 0, 1]), 4)
    assert found.items.tolist() == [0, 1, 2, 2]  # .5 | .6 .75 | 1 .8
    assert found.confidence[1:].tolist() == pytest.approx([0.5, 0.675, 0.9]) and found.confidence[0].isnan()
    assert found.accuracy[1:].tolist() == [1.0, 0.5, 1.0] and found.accuracy[0].isnan()
    error = calibrate.ece(of(0.5, 0.6, 0.75, 1.0, 0.2), torch.tensor([0, 1, 0, 0, 1]), 4)
    assert error == pytest.approx((0.5 + 2 * 0.175 + 2 * 0.1) / 5)
    assert calibrate.reliability(of(0.7, 0.2), torch.tensor([0, 0]), 1).items.tolist() == [2]
    assert len(calibrate.reliability(of(0.7), torch.tensor([0])).items) == 15


@pytest.mark.parametrize(
    ("p", "y", "bins"),
    [
        (of(0.5)[0], torch.tensor(0), 2),
        (of(0.5), torch.tensor([0, 1]), 2),
        (of(), torch.tensor([], dtype=torch.long), 2),
        (of(0.5), torch.tensor([0]), 0),
        (of(-0.1), torch.tensor([0]), 2),
        (of(0.5) * 1.01, torch.tensor([0]), 2),
    ],
)
def test_what_is_no_table_of_probabilities_is_refused(p, y, bins):
    with pytest.raises(TiltingError):
        calibrate.reliability(p, y, bins)


def test_nearly_summing_to_one_is_enough_and_a_sure_no_is_a_probability():
    assert calibrate.reliability(of(0.5) * 1.0005, torch.tensor([0]), 2).items.tolist() == [0, 1]
    assert calibrate.reliability(of(0.0), torch.tensor([1]), 2).items.tolist() == [0, 1]
    assert calibrate.reliability(of(1.0) * 1.0005, torch.tensor([0]), 2).items.tolist() == [0, 1]  # above 1 by rounding
    three = torch.tensor([[0.4, 0.3, 0.3]], dtype=torch.float64)
    assert calibrate.reliability(three, torch.tensor([0]), 2).items.tolist() == [1, 0]


@pytest.mark.parametrize(("gap", "right", "count"), [(2.0, 3, 4), (0.3, 3, 4), (40.0, 9, 10), (2.0, 6, 10)])
def test_the_temperature_of_two_classes_in_closed_form(gap, right, count):
    """All logits (gap, 0) and so many labels 0: sigmoid(gap / T) is their share, T = gap / log(right / wrong)."""
    z = torch.tensor([[gap, 0.0]] * count, dtype=torch.float64) + torch.arange(count)[:, None]  # a shift of both says nothing
    y = torch.tensor([0] * right + [1] * (count - right))
    assert calibrate.temperature(z, y) == pytest.approx(gap / math.log(right / (count - right)), rel=1e-8)


def test_temperatures_at_their_ends():
    z = torch.tensor([[2.0, 0.0, 1.0]] * 4)
    assert calibrate.temperature(z, torch.tensor([0, 0, 0, 0])) == 1.0  # every label has the largest logit
    assert calibrate.temperature(z, torch.tensor([1, 1, 1, 1])) == 100.0  # worse than no guess
    assert calibrate.temperature(z, torch.tensor([0, 1, 2, 2])) == 100.0  # as good as none: 1 on average
    near = torch.tensor([[10.0, 0.0]] * 100)
    assert calibrate.temperature(near, torch.tensor([0] * 51 + [1] * 49)) == 100.0  # 250 by the formula
    for wrong in (z[0], z[:0], z * math.nan):
        with pytest.raises(TiltingError, match="finite logits"):
            calibrate.temperature(wrong, torch.zeros(len(wrong), dtype=torch.long))
    with pytest.raises(TiltingError, match="finite logits"):
        calibrate.temperature(z, torch.tensor([0, 1]))


def test_a_numbers_temperature_is_its_mean_square_gap():
    schema = Schema("size", "gaussian", shift=10.0, scale=2.0, std=4.0)
    outputs, y = torch.tensor([[2.0], [-0.5]]), torch.tensor([18.0, 1.0])  # means 14 and 9
    assert calibrate.gaps_of(schema, outputs, y).tolist() == [1.0, -2.0]
    assert calibrate.temperature_of(schema, outputs, y) == 2.5 and calibrate.gaussian_temperature(torch.tensor([0.5])) == 0.25
    classes = Schema("kind", classes=("a", "b"))
    z = torch.tensor([[2.0, 0.0]] * 4)
    assert calibrate.temperature_of(classes, z, torch.tensor([0.0, 0.0, 0.0, 1.0])) == pytest.approx(2 / math.log(3), rel=1e-5)
    for wrong in (torch.zeros(3), torch.tensor([]), torch.tensor([math.inf])):
        with pytest.raises(TiltingError, match="not all 0"):
            calibrate.gaussian_temperature(wrong)


def test_levels_of_a_number_against_the_shares_below_them():
    """Levels .25 and .75 of gaps at the quantiles 0, .25 and 1: two of three are at or below the first, and the second."""
    quarter = float(torch.special.ndtri(torch.tensor(0.25, dtype=torch.float64))) - 1e-9
    gaps = torch.tensor([-9.0, quarter, 9.0], dtype=torch.float64)
    found = calibrate.gaussian_reliability(gaps, 2)
    assert found.confidence.tolist() == [0.25, 0.75] and found.items.tolist() == [3, 3]
    assert found.accuracy.tolist() == pytest.approx([2 / 3, 2 / 3])
    middle = calibrate.gaussian_reliability(torch.zeros(1), 1)  # at its level is below it
    assert middle.accuracy.tolist() == [1.0] and middle.confidence.dtype == torch.float64
    assert calibrate.gaussian_ece(gaps, 2) == pytest.approx((2 / 3 - 0.25 + 0.75 - 2 / 3) / 2)


def test_counts_and_scores():
    counts = calibrate.confusion(torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 1]), 4)
    assert counts.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert calibrate.macro_f1(counts) == pytest.approx((2 / 4 + 4 / 7 + 0.0) / 3)  # the fourth never occurs
    y = torch.tensor([1.0, 2.0, 6.0])
    assert calibrate.r_squared(y, torch.tensor([1.0, 3.0, 5.0])) == pytest.approx(1 - 2 / 14)
    assert calibrate.r_squared(torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.25])) == 0.5
    assert calibrate.r_squared(y, torch.full((3,), 3.0)) == 0.0 and math.isnan(calibrate.r_squared(y * 0, y))


def test_bins_are_put_together_until_each_has_enough():
    """Means by items: of 3 at .2 and 1 at .6 it is .3; what is left over joins the last, and a lone group stays."""
    diagram = [(0.2, 0.0, 3), (0.6, 1.0, 1), (0.7, 0.5, 4), (0.8, 0.25, 2), (0.9, 1.0, 1)]
    found = calibrate.pooled(diagram, 4)
    assert found == [pytest.approx((0.3, 0.25, 4)), pytest.approx(((2.8 + 1.6 + 0.9) / 7, (2.0 + 0.5 + 1.0) / 7, 7))]
    assert calibrate.pooled(diagram[2:], 3) == [pytest.approx((0.7, 0.5, 4)), pytest.approx((2.5 / 3, 0.5, 3))]
    assert calibrate.pooled(diagram[:1], 100) == [pytest.approx(diagram[0])] and calibrate.pooled([], 3) == []
    assert calibrate.pooled(diagram[:2], 3) == [pytest.approx((0.3, 0.25, 4))]
    assert calibrate.pooled(diagram, 1) == [pytest.approx(one) for one in diagram]
    four = [(0.1, 0.0, 2), (0.2, 0.0, 2), (0.3, 1.0, 2), (0.4, 1.0, 1)]
    assert calibrate.pooled(four, 2) == [pytest.approx(one) for one in (four[0], four[1], (1.0 / 3, 1.0, 3))]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.0, "T = 1 (as sure as it is right)"),
        (1.049, "T = 1.05 (as sure as it is right)"),
        (0.951, "T = 0.951 (as sure as it is right)"),
        (0.9, "T = 0.9 (it was less sure than right; sharpened by that)"),
        (1.0625, "T = 1.06 (it was more sure than right; softened by that)"),
        (2.0, "T = 2 (it was more sure than right; softened by that)"),
    ],
)
def test_a_temperature_in_words(value, said):
    assert calibrate.of_temperature(value) == said


@pytest.mark.parametrize(
    ("sure", "by_hand"),
    [
        ([1.0, 1.0], 0.0),
        ([0.5], 0.5),
        ([0.5, 0.5], 0.25),  # both right or both wrong, half of the time: off by .5
        ([0.5, 1.0], 0.25),  # bins of one: |right - .5| / 2 and 0
        ([0.8] * 3, (0.512 * 0.2 + 0.384 * 0.4 / 3 + 0.096 * 1.4 / 3 + 0.008 * 0.8)),
    ],
)
def test_the_calibration_error_of_chance_alone(sure, by_hand):
    assert calibrate.ece_by_chance(torch.tensor(sure), draws=20000) == pytest.approx(by_hand, abs=0.005)


def test_the_calibration_error_of_chance_alone_falls_with_the_records():
    """It is the mean of `ece` itself over labels drawn from the probabilities; a number's falls alike."""
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(60, 3, generator=generator, dtype=torch.float64).mul(3).softmax(1)
    drawn = [calibrate.ece(p, torch.multinomial(p, 1, generator=generator)[:, 0]) for _ in range(300)]
    assert calibrate.ece_by_chance(p.amax(1)) == pytest.approx(sum(drawn) / len(drawn), abs=0.01)
    of = [calibrate.gaussian_ece_by_chance(n) for n in (10, 40, 160)]
    assert of[0] > 1.7 * of[1] > 3 * of[2] > 0


@pytest.mark.parametrize(("right", "count"), [(0, 10), (7, 10), (10, 10), (33, 60)])
def test_wilsons_interval_is_scipys(right, count):
    from scipy.stats import binomtest

    assert calibrate.wilson(right / count, count) == pytest.approx(binomtest(right, count).proportion_ci(method="wilson"))


def test_a_record_at_eight_noise_levels_is_one_record(monkeypatch):
    """The reliability of noisy latents: as wide as that of as many records seen once, and as many are told."""
    from tilting.conditioning import fit_charts
    from tilting.conditioning.table import Column

    drawn = []
    axes = fit_charts.axes
    monkeypatch.setattr(fit_charts, "axes", lambda: drawn.append(axes()) or drawn[-1])
    for levels in (1, 8):
        table = {"confidence": [0.5, None, 0.9], "accuracy": [0.25, None, 0.95], "items": [20 * levels, 0, 20 * levels]}
        numbers = {"records": {"held_out": 40}, "reliability": {"before": table, "after": table}, "temperature": 1.0}
        fit_charts._reliability(Column("bright", "classes", ("0", "1")), {**numbers, "ece": {"before": 0.1, "after": 0.1}})
    once, noisy = drawn
    whiskers = [[line.get_segments()[0] for line in axis.collections] for axis in drawn]
    assert len(whiskers[0]) == 2 and np.allclose(whiskers[0], whiskers[1])
    assert [text.get_text() for text in once.texts] == [text.get_text() for text in noisy.texts] == ["20", "20"]
