"""Verdicts of the DRaFT recipes, from the numbers alone: "holds", "fails", or "undecided" where an interval does not say.

    faster    mean_i (A_i(a) - A_i(b)),  A_i = 1/S ∫_0^S (r_i(s) - r_i(0)) ds, image i's mean gain over S training steps
    sooner    s(a) / s(b), s the step at which a curve first has half of b's last gain (linear between evaluations)

The first is a mean and has its t interval. The second's is a t interval of s(b) / s(a), each prompt left out in turn of both
curves, and each training seed where there are several. A curve that never gets there has no s: infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from tilting.metrics.statistics import Estimate, jackknife
from tilting_papers.draft.study import Results
from tilting_papers.numbers import Finding, Key, Values, by_prompt, difference, interval, mean, needed, verdict
from tilting_papers.page import number, shown

Test = Callable[[Results], Finding | None]


def needing(test: Callable[[Results], Finding], *names: str) -> Test:
    """Wrap a test so that it returns None if one of these rows is missing."""
    return lambda results: test(results) if set(names) <= set(results.names) else None


def paired(results: Results, a: str, b: str, of: Callable[[str], Values]) -> tuple[Values, Values]:
    """Values of two rows for the training seeds that both have; an untrained row pairs with every seed."""
    trained = [len(results.of_seeds(name)) for name in (a, b) if name in results.summaries]
    first, second = ({key: value for key, value in of(name).items() if key[0] < min(trained, default=1)} for name in (a, b))
    return first, second


def higher(a: str, b: str, what: str | None = None, where: str | None = None) -> Test:
    """Test that row a ends above row b in its reward, or in ``what`` ("judge"), on a set (default the first)."""

    def test(results: Results) -> Finding:
        unit = "nats (judge)" if what == "judge" else f"({what or results.spec})"
        pair = paired(results, a, b, lambda name: results.values(name, what, where))
        return difference(*pair, f"{unit}, {a} - {b}", seeded=True)

    there = needing(test, a, b)
    return lambda results: there(results) if where is None or where in results.protocol.sets else None


def crossing(across: Sequence[float], means: Sequence[float], level: float) -> float | None:
    """The x at which a curve first reaches a level, interpolated linearly; None if it never does."""
    for i, height in enumerate(means):
        if height >= level:
            if i == 0 or height == means[i - 1]:
                return float(across[i])
            share = (level - means[i - 1]) / (height - means[i - 1])
            return float(across[i - 1] + share * (across[i] - across[i - 1]))
    return None


def ratio(across_a: Sequence[float], a: Sequence[float], across_b: Sequence[float], b: Sequence[float]) -> float:
    """s(a) / s(b) as above; infinity where a never gets there, NaN where b does not rise above its start."""
    if b[-1] <= b[0]:
        return math.nan
    half = (b[0] + b[-1]) / 2
    mine, theirs = crossing(across_a, a, half), crossing(across_b, b, half)
    assert theirs is not None and theirs > 0
    return math.inf if mine is None else mine / theirs


def areas(results: Results, run: str) -> Values:
    """A_i (see above) of every image."""
    looks, steps = results.over_training(run), [point["step"] for point in results.points(run)]
    span = steps[len(looks) - 1] - steps[0]
    parts = [(b - a) / span for a, b in pairwise(steps[: len(looks)])]

    def area(key: Key) -> float:
        means = [(one[key] + after[key]) / 2 - looks[0][key] for one, after in pairwise(looks)]
        return sum(part * gain for part, gain in zip(parts, means, strict=True))

    return {key: area(key) for key in looks[0] if all(key in look for look in looks)}


def faster(a: str, b: str) -> Test:
    """Test that run a gains more than run b on average over training, each relative to its own start."""

    def test(results: Results) -> Finding:
        words = f"({results.spec}), mean gain over training of {a} - {b}"
        return difference(*paired(results, a, b, lambda run: areas(results, run)), words, seeded=True)

    return needing(test, a, b)


def _table(results: Results, run: str, seeds: int) -> list[list[list[float]]]:
    """Mean reward of each prompt's images, by evaluation, seed and prompt."""
    return [
        [by_prompt({key: value for key, value in look.items() if key[0] == seed}) for seed in range(seeds)]
        for look in results.over_training(run)
    ]


def sooner(a: str, b: str, most: float = 2 / 3) -> Test:
    """Test that run a reaches half of run b's gain in at most the share ``most`` of b's steps."""

    def test(results: Results) -> Finding:
        import torch

        steps = [[point["step"] for point in results.points(run)] for run in (a, b)]
        seeds = min(len(results.of_seeds(run)) for run in (a, b))
        curves = [torch.tensor(_table(results, run, seeds), dtype=torch.float64) for run in (a, b)]

        def pace(seeds: Sequence[int], prompts: Sequence[int]) -> float:
            mine, theirs = (curve[:, list(seeds)][:, :, list(prompts)].mean((1, 2)).tolist() for curve in curves)
            times = ratio(steps[0], mine, steps[1], theirs)
            return 1 / times if times else math.nan

        _, every, everyone = map(range, curves[0].shape)
        found = jackknife(lambda rows: pace(every, rows), len(everyone))
        again = jackknife(lambda rows: pace(rows, everyone), len(every)) if len(every) > 1 else None
        if found is not None and again is not None:
            found = Estimate(found.mean, (*again.errors, *found.errors) if again.errors and found.errors else ())
        bounds = None if found is None else found.interval()
        if bounds is None or bounds.low is None or bounds.high is None:
            return {"verdict": "undecided", "found": f"{b} does not rise above its start clearly enough to be caught up with"}
        whole, low, high = (1 / one if one > 0 else math.inf for one in (bounds.mean, bounds.high, bounds.low))
        kind = "holds" if high <= most else "fails" if low > most else "undecided"
        words = f"{a} needs {_times(whole)} of {b}'s steps to half of its gain [{_times(low)}, {_times(high)}]"
        words += needed(found, 1 / most) if kind == "undecided" else ""
        plain = {"ratio": whole, "low": low, "high": high}
        return {"verdict": kind, "found": words, **{k: v if math.isfinite(v) else None for k, v in plain.items()}, "most": most}

    return needing(test, a, b)


def _times(value: float) -> str:
    return "more than it was given" if math.isinf(value) else number(value, 2)


def dearer(a: str, b: str, most: float) -> Test:
    """Test that a training step of run a costs at most ``most`` times one of run b, in denoiser evaluations, with two for the
    backward pass of each reward query. Seconds would depend on the machine's load."""

    def test(results: Results) -> Finding:
        last = [results.points(run)[-1] for run in (a, b)]
        paid = [(point["evaluations"] + 2 * point["reward_calls"]) / point["images"] for point in last]
        times = paid[0] / paid[1]
        words = (
            f"{times:.2f} times, {number(paid[0], 3)} evaluations an image against {number(paid[1], 3)} (a step back as two)"
        )
        return {"verdict": "holds" if times <= most else "fails", "found": words, "times": times}

    return needing(test, a, b)


def gains(results: Results, run: str) -> Values:
    """Gain of every image: its last reward minus that before training, in the run's own sampler."""
    first, last = (results.over_training(run)[i] for i in (0, -1))
    return {key: last[key] - first[key] for key in last if key in first}


def behind(slow: str, fast: str, times: float) -> Test:
    """Test that a run with at least ``times`` the reward queries of another gains less, each relative to its own start."""

    def test(results: Results) -> Finding:
        paid = [results.points(run)[-1]["reward_calls"] for run in (slow, fast)]
        gain = gains(results, fast)
        pair = paired(results, fast, slow, lambda run: gains(results, run))
        gap = difference(*pair, f"({results.spec}), gain of {fast} - gain of {slow}", seeded=True)
        curve = [mean(by_prompt(values)) for values in results.over_training(slow)]
        queries = [point["reward_calls"] for point in results.points(slow)]
        caught, more = crossing(queries, curve, curve[0] + mean(list(gain.values()))), paid[0] / paid[1]
        last = f"{slow} does not reach {fast}'s gain within {paid[0]} queries ({more:.1f} times as many)"
        if caught is not None:
            last = f"{slow} reaches {fast}'s gain after {caught:.0f} queries, {caught / paid[1]:.1f} times as many"
        kind = gap["verdict"] if more >= times else "undecided"
        return {**gap, "verdict": kind, "found": f"{gap['found']}; {last}", "queries": paid}

    return needing(test, slow, fast)


def falls(run: str, what: str = "judge", where: str | None = None) -> Test:
    """Test that a quantity ends below that of the base model (over-optimisation, collapse)."""

    def test(results: Results) -> Finding:
        before, after = (results.over_training(run, what, where)[i] for i in (0, -1))
        return difference(before, after, f"({what}), before training - after {run}", seeded=True)

    return needing(test, run)


def near(a: str, b: str, share: float = 0.1) -> Test:
    """Test that two runs end alike: the interval of their difference lies within plus or minus a share of b's gain."""

    def test(results: Results) -> Finding:
        gap = interval(*paired(results, a, b, results.values), seeded=True)
        room = share * abs(mean(list(gains(results, b).values())))
        assert gap is not None
        over, under = (verdict(gap["low"], gap["high"], line) for line in (-room, room))  # of the room's two ends
        outside = over == "fails" or under == "holds"
        kind = "holds" if (over, under) == ("holds", "fails") else "fails" if outside else "undecided"
        words = f"{shown(gap, sign=True)} ({results.spec}), {a} - {b}; {share:.0%} of {b}'s gain is {number(room, 2)}"
        return {"verdict": kind, "found": words, "difference": gap, "room": room}

    return needing(test, a, b)
