"""Verdicts of the DRaFT recipes, from the numbers alone: "holds", "fails", or "undecided" where an interval does not say.

    sooner    s(a) / s(b), s the step at which a curve first reaches b's last mean reward (linear between looks)

with a 95 % interval by resampling whole prompts, the same for both curves. A curve that never reaches it has no s: infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tilting_papers.draft.looks import Values, interval, values_of
from tilting_papers.page import number, shown
from tilting_papers.verdicts import Finding, finding_of

if TYPE_CHECKING:
    from tilting_papers.draft.results import Results

Test = Callable[["Results"], Finding | None]
DRAWS = 1000


def difference(ours: Values, theirs: Values, unit: str) -> Finding:
    """That ours is higher, image by image."""
    gap = interval(ours, theirs)
    if gap is None:
        return {"verdict": "undecided", "found": "no image has both numbers"}
    return finding_of(gap, unit)


def higher(a: str, b: str, what: str | None = None, where: str | None = None) -> Test:
    """That row a ends above row b: its reward, or ``what`` ("judge"), on a set (the first without)."""

    def test(results: Results) -> Finding | None:
        if not results.has(a, b):
            return None
        name = what or results.spec
        unit = "nats (judge)" if what == "judge" else f"({name})"
        return difference(results.values(a, what, where), results.values(b, what, where), f"{unit}, {a} - {b}")

    return test


def crossing(across: Sequence[float], means: Sequence[float], level: float) -> float | None:
    """Where a curve first reaches a level, linear between its points; None if it never does."""
    for i, mean in enumerate(means):
        if mean >= level:
            if i == 0 or mean == means[i - 1]:
                return float(across[i])
            share = (level - means[i - 1]) / (mean - means[i - 1])
            return float(across[i - 1] + share * (across[i] - across[i - 1]))
    return None


def _prompt_means(results: Results, arm: str, where: str) -> list[list[float]]:
    """By look, the mean reward of each prompt."""
    found = []
    for point in results.points(arm):
        values = values_of(point["sets"][where], results.spec)
        by_prompt: dict[str, list[float]] = {}
        for (prompt, _), value in values.items():
            by_prompt.setdefault(prompt, []).append(value)
        found.append([sum(v) / len(v) for v in by_prompt.values()])
    return found


def ratio(across_a: Sequence[float], a: Sequence[float], across_b: Sequence[float], b: Sequence[float]) -> float:
    """s(a) / s(b) as above; infinity where a never gets there, NaN where b does not rise above its start."""
    if b[-1] <= b[0]:
        return math.nan
    level = b[-1]
    mine, theirs = crossing(across_a, a, level), crossing(across_b, b, level)
    assert theirs is not None and theirs > 0
    return math.inf if mine is None else mine / theirs


def sooner(a: str, b: str, most: float = 2 / 3, across: str = "step") -> Test:
    """That arm a reaches arm b's last reward in at most this share of its steps (or images, seconds)."""

    def test(results: Results) -> Finding | None:
        import torch

        if not results.has(a, b):
            return None
        xs = [[point[across] for point in results.points(arm)] for arm in (a, b)]
        curves = [torch.tensor(_prompt_means(results, arm, results.first), dtype=torch.float64) for arm in (a, b)]
        prompts = curves[0].shape[1]
        pick = torch.randint(prompts, (DRAWS, prompts), generator=torch.Generator().manual_seed(0))
        drawn = [ratio(xs[0], curves[0][:, row].mean(1).tolist(), xs[1], curves[1][:, row].mean(1).tolist()) for row in pick]
        found = ratio(xs[0], curves[0].mean(1).tolist(), xs[1], curves[1].mean(1).tolist())
        known = sorted(value for value in drawn if value == value)
        if found != found or len(known) < DRAWS * 0.9:
            return {"verdict": "undecided", "found": f"{b} does not rise above its start clearly enough to be caught up with"}
        low, high = known[int(0.025 * (len(known) - 1))], known[math.ceil(0.975 * (len(known) - 1))]
        kind = "holds" if high <= most else "fails" if low > most else "undecided"
        words = f"{a} needs {_times(found)} of {b}'s {_noun(across)} [{_times(low)}, {_times(high)}]"
        return {"verdict": kind, "found": words, "ratio": _json(found), "low": _json(low), "high": _json(high), "most": most}

    return test


def _noun(across: str) -> str:
    return {"step": "steps", "seconds": "seconds", "reward_calls": "reward queries", "images": "images"}[across]


def _times(value: float) -> str:
    return "more than it was given" if math.isinf(value) else number(value, 2)


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def dearer(a: str, b: str, most: float) -> Test:
    """That arm a takes at most so many times arm b's seconds per training step; by their sums, without an interval."""

    def test(results: Results) -> Finding | None:
        if not results.has(a, b):
            return None
        paid = [results.points(arm)[-1]["seconds"] / results.points(arm)[-1]["step"] for arm in (a, b)]
        times = paid[0] / paid[1]
        words = f"{times:.2f} times, {number(paid[0], 3)} s against {number(paid[1], 3)} s a step"
        return {"verdict": "holds" if times <= most else "fails", "found": words, "times": times}

    return test


def gains(results: Results, arm: str, where: str | None = None) -> Values:
    """By image, the last reward less that before training, in the arm's own sampler."""
    first, last = (values_of(results.points(arm)[i]["sets"][where or results.first], results.spec) for i in (0, -1))
    return {key: last[key] - first[key] for key in last if key in first}


def behind(slow: str, fast: str, times: float) -> Test:
    """That an arm with at least so many times the reward queries of another still gains less, each over its own start."""

    def test(results: Results) -> Finding | None:
        if not results.has(slow, fast):
            return None
        paid = [results.points(arm)[-1]["reward_calls"] for arm in (slow, fast)]
        gap = difference(gains(results, fast), gains(results, slow), f"({results.spec}), gain of {fast} - gain of {slow}")
        xs = [point["reward_calls"] for point in results.points(slow)]
        start = sum(_prompt_means(results, slow, results.first)[0]) / len(_prompt_means(results, slow, results.first)[0])
        mine = list(gains(results, fast).values())
        level = start + sum(mine) / len(mine)
        caught = crossing(xs, [sum(m) / len(m) for m in _prompt_means(results, slow, results.first)], level)
        more = paid[0] / paid[1]
        tail = (
            f"{slow} reaches {fast}'s gain after {caught:.0f} queries, {caught / paid[1]:.1f} times as many"
            if caught is not None
            else f"{slow} does not reach {fast}'s gain within {paid[0]} queries ({more:.1f} times as many)"
        )  # fmt: skip
        kind = gap["verdict"] if more >= times else "undecided"
        return {**gap, "verdict": kind, "found": f"{gap['found']}; {tail}", "queries": paid}

    return test


def falls(arm: str, what: str = "judge", where: str | None = None) -> Test:
    """That a number has fallen below the base model's at the end of an arm (over-optimisation, collapse)."""

    def test(results: Results) -> Finding | None:
        if not results.has(arm):
            return None
        before, after = (values_of(results.points(arm)[i]["sets"][where or results.first], what) for i in (0, -1))
        return difference(before, after, f"({what}), before training - after {arm}")

    return test


def near(a: str, b: str, share: float = 0.1) -> Test:
    """That two arms end alike: the interval of their difference lies within a share of b's gain, either way."""

    def test(results: Results) -> Finding | None:
        if not results.has(a, b):
            return None
        gap = interval(results.values(a), results.values(b))
        mine = list(gains(results, b).values())
        room = share * abs(sum(mine) / len(mine))
        assert gap is not None
        inside, outside = -room <= gap["low"] and gap["high"] <= room, gap["low"] > room or gap["high"] < -room
        kind = "holds" if inside else "fails" if outside else "undecided"
        words = f"{shown(gap, sign=True)} ({results.spec}), {a} - {b}; {share:.0%} of {b}'s gain is {number(room, 2)}"
        return {"verdict": kind, "found": words, "difference": gap, "room": room}

    return test
