"""Statistics of a table's rows: values per image, intervals of means and of paired differences, and verdicts.

mean_i (a_i - b_i),  with its t interval over prompts (`tilting.metrics.statistics`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilting.metrics import statistics
from tilting.rewards.spec import split_weight
from tilting.runs.files import keys_of
from tilting_papers.page import shown

Key = tuple[int, str, int]
"""Identifies an image: number of the row's run, prompt, index within the prompt."""
Values = dict[Key, float]
Interval = dict[str, Any]
"""A "mean" and its bounds, "low" and "high", which are None of a single value."""
Finding = dict[str, Any]
"""A "verdict", what was "found" in words, and the numbers behind it."""
OVER_PROMPTS = (
    "Means with 95 % t intervals over prompts; differences are paired image by image. An undecided claim says how many prompts "
    "(and training seeds) would decide it four times out of five, if mean and spread are as they were found here."
)
"""Explanation of intervals on every page."""
_WAYS = ("training seeds", "prompts")


def image_values(manifests: Sequence[Mapping[str, Any]], what: str, total: str = "") -> Values:
    """One value per image of a row's runs, without images that have none.

    Args:
        manifests: of the runs.
        what: "judge", a reward's spec without weight, or the name ``total``.
        total: name of the weighted sum of the rewards.
    """
    values: Values = {}
    for k, manifest in enumerate(manifests):
        for record, key in zip(manifest["images"], keys_of(manifest["images"]), strict=True):
            rewards = {split_weight(spec)[0]: value for spec, value in record["rewards"].items()}
            rewards |= {total: record["reward"]} if total else {}
            value = record["judge"] if what == "judge" else rewards.get(what)
            if value is not None:
                values[k, *key] = value
    return values


def estimated(
    ours: Mapping[Key, float], theirs: Mapping[Key, float] | None = None, seeded: bool = False
) -> statistics.Estimate | None:
    """Mean of ours, or of the paired differences ours - theirs, with its standard error over prompts (over images if there is
    one prompt).

    Args:
        ours: values per image.
        theirs: values per image; a single run is paired with each of ours.
        seeded: whether a row's runs are training seeds, a second source of variance.

    Returns:
        None if no image has both values.
    """
    lone = theirs is not None and {k for k, _, _ in theirs} == {0}
    other = dict.fromkeys(ours, 0.0) if theirs is None else theirs
    pairs = [(key, (0, *key[1:]) if lone else key) for key in ours]
    pairs = [(a, b) for a, b in pairs if b in other]
    if not pairs:
        return None
    apart, prompts = [ours[a] - other[b] for a, b in pairs], [a[1] for a, _ in pairs]
    return statistics.estimate(apart, prompts, seeds=[a[0] for a, _ in pairs] if seeded else None)


def interval(ours: Mapping[Key, float], theirs: Mapping[Key, float] | None = None, seeded: bool = False) -> Interval | None:
    """The mean of `estimated` and its 95 % t interval."""
    found = estimated(ours, theirs, seeded)
    return None if found is None else found.interval()._asdict()


def needed(found: statistics.Estimate | None, line: float = 0.0) -> str:
    """How many prompts (and training seeds) would decide an undecided claim, in words; "" if unknown."""
    counts = None if found is None or not found.errors else statistics.deciding(found, line)
    if found is None or not found.errors:
        return ""
    if counts is None:
        return f"; more than {statistics.MOST:,} prompts would be needed to decide"
    return f"; {' and '.join(f'{n:,} {way}' for n, way in zip(counts, _WAYS[-len(counts) :], strict=True))} would decide"


def mean(values: Sequence[float]) -> float:
    """Mean of at least one value."""
    return sum(values) / len(values)


def by_prompt(values: Mapping[Key, float]) -> list[float]:
    """The mean of each prompt's images."""
    prompts = dict.fromkeys(prompt for _, prompt, _ in values)
    return [mean([value for (_, p, _), value in values.items() if p == prompt]) for prompt in prompts]


def verdict(low: float | None, high: float | None, line: float = 0.0) -> str:
    """Whether an interval lies above a line: "holds", "fails", or "undecided" if it contains the line or is unknown."""
    if low is None or high is None:
        return "undecided"
    return "holds" if low > line else "fails" if high < line else "undecided"


def difference(ours: Values, theirs: Values, unit: str = "", seeded: bool = False) -> Finding:
    """The finding on the claim that ours is higher, by paired differences; ``seeded`` as in `interval`."""
    found = estimated(ours, theirs, seeded)
    if found is None:
        return {"verdict": "undecided", "found": "no image has both numbers"}
    gap = found.interval()._asdict()
    kind = verdict(gap["low"], gap["high"])
    words = f"{shown(gap, sign=True)} {unit}".strip() + (needed(found) if kind == "undecided" else "")
    return {"verdict": kind, "found": words, "difference": gap}
