"""Intervals of paired differences: the same images (prompt, seed, index) under two methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tilting.lazy import torch


class Interval(NamedTuple):
    """A mean and its bootstrap confidence interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], groups: Sequence[object] | None = None, draws: int = 10_000, level: float = 0.95
) -> Interval:
    """Mean of a - b and its percentile bootstrap interval.

    Args:
        a, b: n paired values.
        groups: n labels (such as prompts); whole groups are resampled, as images of one prompt are not independent.
        draws: bootstrap samples (with a fixed seed: the interval is a function of its inputs).
        level: of confidence.

    Raises:
        ValueError: if the lengths differ or nothing is given.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired values must be as many, and at least one: {len(a)} and {len(b)}")
    difference = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
    labels = list(range(len(a))) if groups is None else list(groups)
    names = list(dict.fromkeys(labels))
    index = torch.tensor([names.index(label) for label in labels])
    total = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, difference)
    count = torch.bincount(index, minlength=len(names)).double()
    pick = torch.randint(len(names), (draws, len(names)), generator=torch.Generator().manual_seed(0))
    means = total[pick].sum(1) / count[pick].sum(1)
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(difference.mean().item(), low, high)
