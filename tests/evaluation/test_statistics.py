"""Intervals hold their level: by hand, and by simulation on Gaussian differences and on pocket's own.

The percentile bootstrap, which every page used before, is the negative control: it fails the same test.
"""

from __future__ import annotations

import json
import re
from math import ceil, sqrt

import numpy as np
import pytest
import scipy.stats

from support.paths import ROOT
from tilting.metrics.prompts import expected
from tilting.metrics.statistics import Estimate, Interval, deciding, estimate, holm, interval, jackknife, reach
from tilting.metrics.verdict import decide, too_few

POCKET = json.loads((ROOT / "tests" / "fixtures" / "differences.json").read_text(encoding="utf-8"))
"""By number, CoDe - base of 240 prompts (tests/fixtures/make_differences.py)."""
COUNTS, RUNS = (4, 8, 20), 20_000


def test_balanced_prompts_have_the_t_interval_of_their_means():
    """Prompt means 1, 2 and 6: mean 3, s = √7 / √3, t_2(95 %) = 4.3027, 7/6 as wide."""
    values, prompts = [0.0, 2.0, 2.0, 2.0, 5.0, 7.0], ["a", "a", "b", "b", "c", "c"]
    half = 7 / 6 * 4.302652730 * sqrt(7 / 3)
    assert interval(values, None, prompts) == pytest.approx((3.0, 3.0 - half, 3.0 + half))
    assert estimate(values, prompts).error == pytest.approx(sqrt(7 / 3))
    assert interval(values, [1.0] * 6, prompts) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


def test_a_prompt_counts_once_however_many_images_it_has():
    """Images 0, 1, 2 of a and 5 of b: prompt means 1 and 5, whose mean is 3 and standard error 2; as `evaluate` says."""
    values, prompts = [0.0, 1.0, 2.0, 5.0], ["a", "a", "a", "b"]
    found = estimate(values, prompts)
    assert found.mean == 3.0 and found.errors == ((pytest.approx(2.0), 1),)
    assert found.interval() == expected(values, prompts)
    doubled = estimate([0.0, 2.0, 5.0, 7.0, 1.0, 4.0], ["a", "a", "b", "c", "b", "c"], [1, 1, 1, 1, 2, 2])
    assert doubled == estimate([1.0, 5.0, 7.0, 1.0, 4.0], ["a", "b", "c", "b", "c"], [1, 1, 1, 2, 2])


@pytest.mark.parametrize("images", [(1, 1, 1, 1, 2, 4, 8, 8), (1, 1, 1, 1, 16)])
def test_the_interval_covers_prompts_of_unlike_numbers_of_images(images):
    """Clusters by image, with the usual correction, cover .89 and .57."""
    draw = np.random.default_rng(0)
    prompts = [k for k, count in enumerate(images) for _ in range(count)]
    of_prompts, noise = draw.normal(size=(1000, len(images))), draw.normal(size=(1000, len(prompts)))
    found = [interval(row, prompts=prompts) for row in (of_prompts[:, prompts] + 0.7 * noise).tolist()]
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.93


def test_an_interval_that_touches_0_is_on_neither_side_of_it():
    assert Interval(0.5, 0.2, 0.8).above and not Interval(0.5, 0.2, 0.8).below
    assert Interval(-0.5, -0.8, -0.2).below and not Interval(-0.5, -0.8, -0.2).above
    for touching in (Interval(0.5, 0.0, 1.0), Interval(-0.5, -1.0, 0.0), Interval(1.0, None, None)):
        assert not touching.above and not touching.below


def test_images_of_a_lone_prompt_are_its_clusters_and_a_single_value_has_no_interval():
    assert estimate([1.0, 2.0, 3.0], ["a"] * 3) == (2.0, ((pytest.approx(1 / sqrt(3)), 2),))
    assert interval([1.5]) == (1.5, None, None) and not interval([1.5]).above and estimate([1.5]).error is None
    assert interval([0.25] * 5) == (0.25, 0.25, 0.25)
    for bad in (lambda: interval([]), lambda: interval([1.0, 2.0], prompts=["a"])):
        with pytest.raises(ValueError, match="a label for each"):
            bad()


def test_seeds_are_a_second_way_to_vary():
    """Seeds' means 1 and 3, prompts' means 1.5, 2, 2.5: h² = (5/4 · 12.7062 · 1)² + (7/6 · 4.3027 · .5 / √3)²."""
    values = [0.5, 1.0, 1.5, 2.5, 3.0, 3.5]
    found = estimate(values, ["a", "b", "c"] * 2, [0] * 3 + [1] * 3)
    assert found.errors == ((pytest.approx(1.0), 1), (pytest.approx(0.5 / sqrt(3)), 2))
    low = 2.0 - sqrt((5 / 4 * 12.706204736) ** 2 + (7 / 6 * 4.302652730 * 0.5) ** 2 / 3)
    assert found.interval().low == pytest.approx(low)


def test_an_interval_reaches_students_t_and_a_little_further():
    wanted = [5 / 4 * 12.706204736, 17 / 16 * 2.364624252, 41 / 40 * 2.093024054]
    assert [reach(0.95, n) for n in (2, 8, 20)] == pytest.approx(wanted)
    assert reach(0.9, 8) == pytest.approx(17 / 16 * 1.894578605)


def test_holms_steps_by_hand():
    """k = 3 on 7 degrees of freedom, 98.33 % first, then 97.5 %, then 95 %: t = 3.128, 2.841, 2.365."""

    def judge(t: float) -> Estimate:
        return Estimate(t, ((1.0, 7),))

    half = [reach(1 - 0.05 / k, 8) for k in (1, 2, 3)]
    assert half == pytest.approx([17 / 16 * t for t in (2.3646, 2.8412, 3.1276)], abs=1e-3)
    found = holm({"first": judge(-3.1), "second": judge(-3.4), "third": judge(-2.6)})
    assert list(found) == ["first", "second", "third"] and all(one.below for one in found.values())
    assert [one.high for one in found.values()] == pytest.approx([-3.1 + half[1], -3.4 + half[2], -2.6 + half[0]])
    none = holm({"first": judge(-3.2), "second": judge(-3.1), "third": judge(0.0)})
    assert not any(one.below for one in none.values())  # each alone would have fallen
    assert [one.high for one in none.values()] == pytest.approx([-3.2 + half[2], -3.1 + half[2], half[2]])


def test_the_jackknife_of_a_mean_is_its_t_interval_and_nothing_is_known_without_values():
    values = [1.0, 2.0, 6.0, 3.0]
    found = jackknife(lambda rows: sum(values[i] for i in rows) / len(rows), 4)
    assert found is not None and found.interval() == pytest.approx(interval(values))
    assert jackknife(lambda rows: float("nan") if 2 not in rows else 1.0, 4) == (1.0, ())
    assert jackknife(lambda rows: float("nan"), 4) is None


def bounds(samples: np.ndarray) -> np.ndarray:
    """`interval` of each of many samples (runs, prompts), (runs, 2), all at once; the first ten are checked against it."""
    mean, error = samples.mean(1), samples.std(1, ddof=1) / sqrt(samples.shape[1])
    half = reach(0.95, samples.shape[1]) * error
    found = np.stack([mean - half, mean + half], 1)
    for sample, one in zip(samples[:10], found, strict=False):
        assert interval(sample.tolist())[1:] == pytest.approx(tuple(one))
    return found


def percentile(samples: np.ndarray, draws: int = 1000) -> np.ndarray:
    """The former interval: percentiles of the means of resampled prompts, (runs, 2)."""
    count = samples.shape[1]
    share = np.random.default_rng(1).multinomial(count, [1 / count] * count, draws) / count
    return np.quantile(share @ samples.T, [0.025, 0.975], axis=0).T


def coverage(found: np.ndarray, truth: float) -> float:
    return float(((found[:, 0] <= truth) & (truth <= found[:, 1])).mean())


@pytest.mark.parametrize("count", COUNTS)
def test_the_interval_covers_a_gaussian_mean_as_often_as_it_says(count):
    samples = np.random.default_rng(count).standard_normal((RUNS, count)) + 0.3
    assert coverage(bounds(samples), 0.3) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("name", POCKET)
@pytest.mark.parametrize("count", COUNTS)
def test_the_interval_covers_the_mean_of_pockets_prompts(name, count):
    """Prompts drawn from 240, whose mean is known."""
    values = np.array(POCKET[name])
    assert len(values) >= 200
    samples = np.random.default_rng(count).choice(values, (RUNS, count))
    assert coverage(bounds(samples), values.mean()) >= 0.93


@pytest.mark.parametrize(("count", "about"), [(4, 0.79), (8, 0.88), (20, 0.92)])
def test_the_percentile_bootstrap_does_not(count, about):
    samples = np.random.default_rng(count).standard_normal((4000, count))
    found = coverage(percentile(samples), 0.0)
    print(f"percentile bootstrap at {count} prompts: {found:.3f}")
    assert found == pytest.approx(about, abs=0.015)


@pytest.mark.parametrize("count", COUNTS)
def test_one_of_three_judges_falls_by_chance_as_seldom_as_a_single_one(count):
    """Judges of the same pictures, correlated by half, whose means are 0: one is said to have fallen in 2.5 % at most."""
    gen, runs = np.random.default_rng(count), 5000
    samples = sqrt(0.5) * (gen.standard_normal((runs, 1, count)) + gen.standard_normal((runs, 3, count)))
    fell, alone = 0, 0
    for judges in samples:
        means = {str(k): estimate(values.tolist()) for k, values in enumerate(judges)}
        fell += any(one.below for one in holm(means).values())
        alone += any(one.interval().below for one in means.values())
    assert fell / runs <= 0.03 and alone / runs > 0.045  # three standard errors are .006; without the correction


@pytest.mark.parametrize("count", COUNTS)
def test_a_fall_of_pockets_judge_by_chance_is_a_little_likelier_where_its_changes_are_skewed(count):
    """Its changes under CoDe less their mean: skewed, so that intervals miss on one side, in 6 % of runs at most."""
    values = np.array(POCKET["judge under clip"])
    found = bounds(np.random.default_rng(count).choice(values - values.mean(), (RUNS, count)))
    assert float((found[:, 1] < 0).mean()) <= 0.06


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("spread", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0, 0.5), (0.3, 1.0, 0.5), (1.0, 0.3, 0.5)])
def test_three_seeds_and_prompts_together_cover_at_least_the_level(count, spread):
    """Effects of seeds, of prompts, and of both: coverage is never below 95 %, but for chance."""
    gen, (of_seed, of_prompt, of_both) = np.random.default_rng(count), spread
    shape = (RUNS, 3, count)
    samples = of_seed * gen.standard_normal((RUNS, 3, 1)) + of_prompt * gen.standard_normal((RUNS, 1, count))
    samples = np.broadcast_to(samples, shape) + of_both * gen.standard_normal(shape)
    by_seed, by_prompt = samples.mean(2), samples.mean(1)
    ways = ((by_seed, 3), (by_prompt, count))
    half = np.sqrt(sum((reach(0.95, k) * one.std(1, ddof=1)) ** 2 / k for one, k in ways))
    mean = samples.mean((1, 2))
    labels = [p for _ in range(3) for p in range(count)], [s for s in range(3) for _ in range(count)]
    for i in range(3):
        found = estimate(samples[i].ravel().tolist(), *labels).interval()
        assert found.high == pytest.approx(mean[i] + half[i])
    assert float((np.abs(mean) <= half).mean()) >= 0.945


def test_so_many_prompts_would_decide_and_one_fewer_would_not():
    """By hand: the interval's half-width and z_.8 = .8416 standard errors fit between the mean and the line, just."""
    for mean, spread, line in ((0.5, 1.0, 0.0), (-0.2, 0.3, 0.0), (1.2, 0.4, 1.0)):
        (count,) = deciding(Estimate(mean, ((spread / sqrt(8), 7),)), line)  # type: ignore[misc]  a spread seen at 8 prompts

        def room(n, spread=spread):
            return ((1 + 0.5 / n) * float(scipy.stats.t.ppf(0.975, n - 1)) + 0.8416212) * spread / sqrt(n)

        assert room(count) <= abs(mean - line) < room(count - 1)


def test_an_experiment_of_that_size_decides_four_times_out_of_five():
    (count,) = deciding(Estimate(0.4, ((1 / sqrt(10), 9),)))  # type: ignore[misc]
    samples = np.random.default_rng(0).normal(0.4, 1.0, (4000, count))
    half = reach(0.95, count) * samples.std(1, ddof=1) / sqrt(count)
    assert float((samples.mean(1) > half).mean()) == pytest.approx(0.8, abs=0.04)


def test_what_would_decide_of_seeds_and_prompts_keeps_their_shares_and_knows_its_limits():
    seeds, prompts = deciding(Estimate(1.0, ((0.5, 2), (0.4, 11))))  # type: ignore[misc]  3 seeds and 12 prompts
    assert prompts > 12 and seeds == ceil(3 * prompts / 12)
    assert deciding(Estimate(0.0, ((1.0, 5),))) is None and deciding(Estimate(1.0, ())) is None
    assert deciding(Estimate(1.0, ((390.0 / sqrt(6), 5),))) is None  # (1.96 + .8416)² 390², about 1.2 million
    (many,) = deciding(Estimate(1.0, ((340.0 / sqrt(6), 5),)))  # type: ignore[misc]
    assert many == pytest.approx(2.80159**2 * 340**2, rel=1e-3)
    assert deciding(Estimate(9.0, ((1.0, 5),)), level=0.5, power=0.5) == (2,)


@pytest.mark.parametrize("count", COUNTS)
def test_the_jackknife_covers_a_ratio_of_means(count):
    gen = np.random.default_rng(count)
    hits = 0
    for _ in range(2000):
        a, b = gen.normal(2.0, 0.6, count), gen.normal(4.0, 0.6, count)
        found = jackknife(lambda rows, a=a, b=b: float(a[list(rows)].mean() / b[list(rows)].mean()), count)
        assert found is not None
        low, high = found.interval()[1:]
        hits += low <= 0.5 <= high  # type: ignore[operator]
    assert hits / 2000 >= 0.93


def seen(mean, error):
    """An estimate of so many clusters that its t interval is about the normal one."""
    return Estimate(mean, ((error, 10_000),))


@pytest.mark.parametrize(
    ("reward", "judges", "word", "reason"),
    [
        (
            1.0,
            {"a": -1.0, "b": 0.0},
            "gamed",
            r"the reward rose: \+1 \[\+0\.804, \+1\.2\], while a -1 \[-1\.22, -0\.776\] fell",
        ),
        (1.0, {"a": -1.0, "b": -1.0}, "gamed", r".*, while a -1 \[.*\] and b -1 \[-1\.22, -0\.776\] fell"),
        (1.0, {"a": 0.0, "b": 1.0, "c": 0.1}, "better", r"the reward rose: .*, and no fall of a, b and c was found"),
        (1.0, {"a": 0.0}, "better", r"the reward rose: .*, and no fall of a was found"),
        (1.0, {}, "better", r"the reward rose: .*, with no held-out judge to contradict it"),
        (0.1, {"a": 0.0}, "no gain", r"the reward did not rise beyond chance: \+0\.1 \[-0\.096, \+0\.296\]"),
        (-1.0, {"a": -1.0}, "no gain", r"the reward fell: .*, and a -1 \[.*\] fell"),
        (0.1, {"a": -1.0}, "no gain", r"the reward did not rise beyond chance: .*, and a .* fell"),
    ],
)
def test_a_verdict_and_its_sentence(reward, judges, word, reason):
    found = decide(seen(reward, 0.1), {name: seen(value, 0.1) for name, value in judges.items()})
    assert found.word == word and re.fullmatch(reason, found.reason), found.reason
    assert found.reward == seen(reward, 0.1).interval() and list(found.judges) == list(judges)


SURE, NOUGHT, LONE = Estimate(0.3, ((0.0, 7),)), Estimate(0.0, ((0.0, 7),)), Estimate(0.0, ())
"""All prompts moved alike; none moved at all; a single one, by nothing."""


@pytest.mark.parametrize(
    ("reward", "judges", "word", "reason"),
    [
        (Estimate(1.0, ()), {}, "too few to say", r"the reward's difference, \+1 \[no interval\], is of too few pictures .*"),
        (SURE, {}, "too few to say", r"the reward's difference, \+0\.3 \[no interval\], is of .*"),
        (LONE, {}, "too few to say", r"the reward's difference, \+0 \[no interval\], is of .*"),
        (NOUGHT, {}, "no gain", r"the reward did not rise beyond chance: \+0 \[\+0, \+0\]"),
        (seen(1.0, 0.1), {"a": SURE}, "too few to say", r"the reward rose: .*, and of a there is too little to say"),
        (
            seen(1.0, 0.1),
            {"a": seen(-0.11, 0.1), "b": seen(-0.09, 0.1)},
            "better",
            r"the reward rose: .*, and a -0\.11 \[-0\.334, \+0\.114\] may have fallen: more prompts would tell",
        ),
        (seen(1.0, 0.1), {"a": seen(-0.09, 0.1)}, "better", r"the reward rose: .*, and no fall of a was found"),
        (seen(1.0, 0.1), {"a": NOUGHT}, "better", r"the reward rose: .*, and no fall of a was found"),
        (
            seen(1.0, 0.1),
            {"a": LONE, "b": seen(0.0, 0.1)},
            "better",
            r"the reward rose: .*, and of a there is too little to say",
        ),
        (
            seen(1.0, 0.1),
            {"diversity": seen(-1.0, 0.1)},
            "less diverse",
            r".*, with no held-out judge .*; pictures .* alike: diversity .*",
        ),
        (
            seen(1.0, 0.1),
            {"a": seen(-1.0, 0.1), "diversity": seen(-1.0, 0.1)},
            "gamed",
            r".*, while a .* fell; pictures .* alike: diversity .*",
        ),
        (
            seen(0.0, 0.1),
            {"a": seen(-1.0, 0.1), "diversity": seen(-1.0, 0.1)},
            "no gain",
            r".*, and a -1 .* and diversity -1 .* fell",
        ),
        (seen(0.0, 0.1), {"a": Estimate(-0.3, ((0.0, 7),))}, "no gain", r"the reward did not rise beyond chance: [^a-z]*"),
    ],
)
def test_what_is_too_little_to_say(reward, judges, word, reason):
    found = decide(reward, judges)
    assert found.word == word and re.fullmatch(reason, found.reason), found.reason


@pytest.mark.parametrize(
    ("prompts", "few"),
    [
        (["a"], "1 picture of one prompt"),
        (["a"] * 3, "3 pictures of one prompt"),
        (["a"] * 4, None),
        (["a", "b"] * 9, "2 prompts"),
        (["a", "b", "c"], "3 prompts"),
        (["a", "b", "c", "d"], None),
        (["a", "b", "c", "d", "e"], None),
    ],
)
def test_four_prompts_or_four_pictures_of_one_are_the_fewest(prompts, few):
    assert too_few(prompts) == (few and f"{few} are too few to tell: take 4 prompts, better 20")


def test_holm_asks_less_of_those_that_are_left():
    """Of two, the first is held to 97.5 % and moves, the second is then held to 95 % alone."""
    found = holm({"far": seen(1.0, 0.1), "near": seen(0.21, 0.1)})
    assert found["near"].low == pytest.approx(0.21 - 1.96 * 0.1, abs=1e-3) and found["near"].above
    assert found["far"].low == pytest.approx(1 - 2.2414 * 0.1, abs=1e-3)
    both = holm({"a": seen(0.21, 0.1), "b": seen(0.21, 0.1)})  # neither moves at 97.5 %: both stay at that
    assert [round((one.high - one.low) / 0.2, 2) for one in both.values()] == [2.24, 2.24]  # type: ignore[operator]
    down = holm({"a": seen(-1.0, 0.1), "b": seen(0.0, 0.1)})
    assert down["a"].below and list(down) == ["a", "b"]


def test_what_has_no_value_has_no_jackknife():
    assert jackknife(lambda rows: float("nan"), 3) is None
    alone = jackknife(lambda rows: 2.0, 1)
    assert alone == Estimate(2.0, ())
    gaps = jackknife(lambda rows: float("nan") if len(rows) < 3 else 1.0, 3)
    assert gaps == Estimate(1.0, ())
    two = jackknife(lambda rows: float(sum(rows)) if len(rows) == 1 else 0.5, 2)  # of 1 and 0: √(1/2 · (1/4 + 1/4))
    assert two == Estimate(0.5, ((pytest.approx(0.5), 1),))


def test_labels_must_fit():
    for wrong in (([],), ([1.0, 2.0], ["a"]), ([1.0], None, [0, 1])):
        with pytest.raises(ValueError, match="a label for each"):
            estimate(*wrong)
    assert estimate([1.0, 3.0], ["a", "b"], [0, 1]).errors == ((1.0, 1), (1.0, 1))  # two seeds are a way to vary
    assert estimate([1.0, 3.0], ["a", "b"], [0, 0]).errors == ((1.0, 1),) == estimate([1.0, 3.0], ["a", "a"]).errors
