"""Means within a prompt, then across prompts, and their t intervals: images of one prompt are not independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilting.errors import TiltingError
from tilting.metrics.statistics import Estimate, Interval, estimate, interval


def by_prompt(values: Sequence[float], prompts: Sequence[str]) -> dict[str, float]:
    """The mean of the values of each prompt, in order of first appearance."""
    groups: dict[str, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        groups.setdefault(prompt, []).append(value)
    return {prompt: sum(group) / len(group) for prompt, group in groups.items()}


def across(means: Mapping[str, float]) -> Interval:
    """The mean over prompts of one number each, and its t interval over prompts (one prompt has none)."""
    return interval(list(means.values()))


def expected(values: Sequence[float], prompts: Sequence[str]) -> Interval:
    """Mean within a prompt, then across prompts, and its t interval over prompts, over images when there is only one."""
    means = by_prompt(values, prompts)
    return across(means) if len(means) > 1 else interval(values)


def difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Estimate:
    """Mean over prompts of ours - theirs, one number per prompt each, and its error over prompts.

    Raises:
        TiltingError: the prompts are not the same.
    """
    if set(ours) != set(theirs):
        odd = sorted(set(ours) ^ set(theirs))[0]
        raise TiltingError(f"runs of different prompts cannot be compared: only one of them has {odd!r}")
    return estimate([ours[p] - theirs[p] for p in ours])


def paired(ours: Mapping[tuple[str, int], float], theirs: Mapping[tuple[str, int], float]) -> Estimate:
    """`difference` of values per (prompt, index); the error of a lone prompt is over its images, which pair by index.

    Raises:
        TiltingError: the prompts are not the same.
    """
    means = [by_prompt(list(v.values()), [prompt for prompt, _ in v]) for v in (ours, theirs)]
    shared = [key for key in ours if key in theirs]
    if len(means[0]) == len(means[1]) == 1 and len(shared) == len(ours) == len(theirs):
        return estimate([ours[k] - theirs[k] for k in shared])
    return difference(*means)
