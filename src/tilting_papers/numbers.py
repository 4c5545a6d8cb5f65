"""Numbers of a table's rows: values of images, bootstrap intervals of their means and paired differences, and verdicts.

mean_i (a_i - b_i),  with the 2.5 and 97.5 percentiles of the same mean over resampled prompts
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tilting.metrics.statistics import paired_bootstrap
from tilting_papers.page import shown

Key = tuple[int, str, int]
"""Of an image: which of a row's runs, prompt, index within it."""
Values = dict[Key, float]
Interval = dict[str, float]
"""A "mean" and its bounds, "low" and "high"."""
Finding = dict[str, Any]
"""A "verdict", what was "found" in words, and the numbers behind it."""
DRAWS = 1000
"""Resamplings of prompts behind an interval that is not of a mean."""


def interval(ours: Mapping[Key, float], theirs: Mapping[Key, float] | None = None) -> Interval | None:
    """Mean of ours (- theirs, image by image) and its 95 % bootstrap interval; prompts are resampled, images of a lone one.

    Theirs may be a single run beside several of ours: then each of ours is paired with it. None when nothing is shared.
    """
    lone = theirs is not None and {k for k, _, _ in theirs} == {0}
    other = dict.fromkeys(ours, 0.0) if theirs is None else theirs
    pairs = [(key, (0, *key[1:]) if lone else key) for key in ours]
    pairs = [(a, b) for a, b in pairs if b in other]
    if not pairs:
        return None
    prompts = [a[1] for a, _ in pairs]
    groups = prompts if len(set(prompts)) > 1 else None
    return paired_bootstrap([ours[a] for a, _ in pairs], [other[b] for _, b in pairs], groups)._asdict()


def mean(values: Sequence[float]) -> float:
    """Of one value or more."""
    return sum(values) / len(values)


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of bootstrap draws."""
    ordered = sorted(values)
    return ordered[int(0.025 * (len(ordered) - 1))], ordered[math.ceil(0.975 * (len(ordered) - 1))]


def resampled(count: int) -> list[list[int]]:
    """`DRAWS` times the rows of ``count`` prompts, drawn with replacement; the same ones for the same count."""
    import torch

    return torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0)).tolist()


def by_prompt(values: Mapping[Key, float]) -> list[float]:
    """The mean of each prompt's images."""
    prompts = dict.fromkeys(prompt for _, prompt, _ in values)
    return [mean([value for (_, p, _), value in values.items() if p == prompt]) for prompt in prompts]


def verdict(low: float, high: float, line: float = 0.0) -> str:
    """Of an interval that is to lie above a line: "holds", "fails", or "undecided" where it does not say."""
    return "holds" if low > line else "fails" if high < line else "undecided"


def difference(ours: Values, theirs: Values, unit: str = "") -> Finding:
    """That ours is higher, image by image."""
    gap = interval(ours, theirs)
    if gap is None:
        return {"verdict": "undecided", "found": "no image has both numbers"}
    return {"verdict": verdict(gap["low"], gap["high"]), "found": f"{shown(gap, sign=True)} {unit}".strip(), "difference": gap}
