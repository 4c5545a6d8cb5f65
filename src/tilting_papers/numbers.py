"""Numbers of a table's rows: values of images, intervals of their means and paired differences, and verdicts.

mean_i (a_i - b_i),  with its t interval over prompts (`tilting.metrics.statistics`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilting.metrics import statistics
from tilting_papers.page import shown

Key = tuple[int, str, int]
"""Of an image: which of a row's runs, prompt, index within it."""
Values = dict[Key, float]
Interval = dict[str, Any]
"""A "mean" and its bounds, "low" and "high", which are None of a single value."""
Finding = dict[str, Any]
"""A "verdict", what was "found" in words, and the numbers behind it."""
OVER_PROMPTS = "Means with 95 % t intervals over prompts; differences are paired image by image."
"""What every page says of its intervals."""


def interval(ours: Mapping[Key, float], theirs: Mapping[Key, float] | None = None, seeded: bool = False) -> Interval | None:
    """Mean of ours (- theirs, image by image) and its 95 % t interval over prompts, over images of a lone one.

    Args:
        ours: values of images.
        theirs: may be a single run beside several of ours: then each of ours is paired with it.
        seeded: a row's runs are training seeds, which vary beside the prompts.

    Returns:
        None when nothing is shared.
    """
    lone = theirs is not None and {k for k, _, _ in theirs} == {0}
    other = dict.fromkeys(ours, 0.0) if theirs is None else theirs
    pairs = [(key, (0, *key[1:]) if lone else key) for key in ours]
    pairs = [(a, b) for a, b in pairs if b in other]
    if not pairs:
        return None
    columns = [ours[a] for a, _ in pairs], [other[b] for _, b in pairs], [a[1] for a, _ in pairs]
    return statistics.interval(*columns, seeds=[a[0] for a, _ in pairs] if seeded else None)._asdict()


def mean(values: Sequence[float]) -> float:
    """Of one value or more."""
    return sum(values) / len(values)


def by_prompt(values: Mapping[Key, float]) -> list[float]:
    """The mean of each prompt's images."""
    prompts = dict.fromkeys(prompt for _, prompt, _ in values)
    return [mean([value for (_, p, _), value in values.items() if p == prompt]) for prompt in prompts]


def verdict(low: float | None, high: float | None, line: float = 0.0) -> str:
    """Of an interval that is to lie above a line: "holds", "fails", or "undecided" where it does not say or there is none."""
    if low is None or high is None:
        return "undecided"
    return "holds" if low > line else "fails" if high < line else "undecided"


def difference(ours: Values, theirs: Values, unit: str = "", seeded: bool = False) -> Finding:
    """That ours is higher, image by image; ``seeded`` as `interval` has it."""
    gap = interval(ours, theirs, seeded)
    if gap is None:
        return {"verdict": "undecided", "found": "no image has both numbers"}
    return {"verdict": verdict(gap["low"], gap["high"]), "found": f"{shown(gap, sign=True)} {unit}".strip(), "difference": gap}
