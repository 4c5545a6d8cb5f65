"""Intervals of means and of paired differences: the same images (prompt, seed, index) under two methods.

    mean ± (1 + 1 / 2K) t_{K-1}(level) s,      s² = K / (K - 1) Σ_k (Σ_{i in k} (v_i - mean))² / n²

over n means v_i, each of the images of a prompt (and training seed), in K clusters, which are prompts: images of one prompt are
not independent, and count as one however many they are. s is the standard error of the K prompt means, and this their t
interval, a little wider: differences of rewards are skewed, and t alone
covers .917 and .924 for 95 % at 4 and 8 prompts of pocket. So coverage is .93 or more there, and .97 or less of Gaussian
differences; a percentile bootstrap has .79, .88 and .92 of these at 4, 8 and 20 prompts (tests/evaluation/test_statistics.py).
A correction by the estimated skewness (Hall 1992) trusts a third moment of a few numbers, and does worse on these.

Several training seeds are a second way to vary: with the half-widths h_1 over seeds and h_2 over prompts the interval is
mean ± √(h_1² + h_2²), whose coverage is at least the level (Banerjee 1960).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, fsum, hypot, sqrt
from typing import NamedTuple

LEVEL = 0.95
"""Default confidence level of intervals."""
POWER = 0.8
"""How often an experiment of the size that `deciding` gives would decide."""
MOST = 10**6
"""Clusters that `deciding` looks up to."""


class Interval(NamedTuple):
    """A mean and its t interval, which a single value does not have: None then."""

    mean: float
    low: float | None
    high: float | None

    @property
    def above(self) -> bool:
        """Whether all of it is above 0."""
        return self.low is not None and self.low > 0

    @property
    def below(self) -> bool:
        """Whether all of it is below 0."""
        return self.high is not None and self.high < 0


class Estimate(NamedTuple):
    """A mean with its standard errors.

    Attributes:
        mean: over values.
        errors: (standard error, degrees of freedom) over prompts, or over seeds and over prompts; none of a single value.
    """

    mean: float
    errors: tuple[tuple[float, int], ...]

    @property
    def error(self) -> float | None:
        """The standard error; None of a single value."""
        return hypot(*(error for error, _ in self.errors)) if self.errors else None

    def interval(self, level: float = LEVEL) -> Interval:
        """The t interval of a level."""
        if not self.errors:
            return Interval(self.mean, None, None)
        half = hypot(*(reach(level, freedom + 1) * error for error, freedom in self.errors))
        return Interval(self.mean, self.mean - half, self.mean + half)


def reach(level: float, clusters: int) -> float:
    """Standard errors from the mean to the interval's ends: (1 + 1 / 2K) t_{K-1}, where P(|T| < t) = level."""
    from scipy.special import stdtrit

    return (1 + 0.5 / clusters) * float(stdtrit(clusters - 1, (1 + level) / 2))


def estimate(
    values: Sequence[float], prompts: Sequence[object] | None = None, seeds: Sequence[object] | None = None
) -> Estimate:
    """The mean over prompts of n values, first within each prompt, and its standard error over clusters.

    Args:
        values: n numbers or paired differences.
        prompts: n labels; without them, and where all are the same one, every value is a cluster of its own.
        seeds: n labels of training runs, where there are several: they vary too.

    Raises:
        ValueError: if the lengths differ or nothing is given.
    """
    if not len(values) or any(len(labels) != len(values) for labels in (prompts, seeds) if labels is not None):
        raise ValueError("an interval needs a value at least, and a label for each")
    labels = range(len(values)) if prompts is None or len(set(prompts)) == 1 else prompts
    cells: dict[tuple[object, object], list[float]] = {}
    for value, seed, label in zip(values, labels if seeds is None else seeds, labels, strict=True):
        cells.setdefault((seed, label), []).append(value)
    means, ways = [fsum(cell) / len(cell) for cell in cells.values()], list(zip(*cells, strict=True))
    mean = fsum(means) / len(means)
    return Estimate(mean, tuple(_error(means, mean, way) for way in ways[seeds is None :] if len(set(way)) > 1))


def _error(values: Sequence[float], mean: float, labels: Sequence[object]) -> tuple[float, int]:
    """The standard error of a mean over the clusters that labels name, and its degrees of freedom."""
    rest: dict[object, list[float]] = {}
    for value, label in zip(values, labels, strict=True):
        rest.setdefault(label, []).append(value - mean)
    count = len(rest)
    return sqrt(count / (count - 1) * fsum(fsum(one) ** 2 for one in rest.values())) / len(values), count - 1


def deciding(found: Estimate, line: float = 0.0, level: float = LEVEL, power: float = POWER) -> tuple[int, ...] | None:
    """How many clusters would decide whether a mean lies above or below a line, if mean and spread are as they were found.

    With c times the clusters each standard error is e / √c; asked for is the least c with

        √(Σ (reach_c e)² / c) + z_power √(Σ e² / c)  <=  |mean - line|

    so that with probability ``power`` the interval leaves the line out. The plan stands on a mean that is itself uncertain: it
    tells how large an experiment is called for, and no more.

    Args:
        found: what was measured.
        line: which the mean is to lie beside.
        level: of the interval.
        power: the chance to decide.

    Returns:
        Of each way of ``found.errors`` (prompts; or seeds, prompts) its clusters; None where there is no error to go by, or
        more than `MOST` would be needed.
    """
    from scipy.special import ndtri

    distance = abs(found.mean - line)
    if not found.errors or not distance:
        return None
    first = found.errors[-1][1] + 1

    def clusters(prompts: int) -> tuple[int, ...]:
        return tuple(ceil((freedom + 1) * prompts / first) for _, freedom in found.errors)

    def enough(prompts: int) -> bool:
        sizes = zip(found.errors, clusters(prompts), strict=True)
        ways = [(error * sqrt((freedom + 1) / k), k) for (error, freedom), k in sizes]
        half = hypot(*(reach(level, k) * error for error, k in ways))
        return half + float(ndtri(power)) * hypot(*(error for error, _ in ways)) <= distance

    low, high = 1, 2
    while not enough(high):
        if high == MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return clusters(high)


def interval(
    ours: Sequence[float],
    theirs: Sequence[float] | None = None,
    prompts: Sequence[object] | None = None,
    seeds: Sequence[object] | None = None,
    level: float = LEVEL,
) -> Interval:
    """The mean of ours, or of ours - theirs pair by pair, and its t interval over prompts (see `estimate`).

    Raises:
        ValueError: if the lengths differ or nothing is given.
    """
    apart = ours if theirs is None else [a - b for a, b in zip(ours, theirs, strict=True)]
    return estimate(apart, prompts, seeds).interval(level)


def holm(estimates: Mapping[str, Estimate], level: float = LEVEL) -> dict[str, Interval]:
    """Intervals of k means that are asked the same: with probability ``level`` none excludes 0 where nothing moved.

    Holm's (1979) steps: the intervals of level 1 - (1 - level) / k that exclude 0 are kept, and those that are left are made
    again as so many fewer.
    """
    left, kept = dict(estimates), {}
    while left:
        now = {name: one.interval(1 - (1 - level) / len(left)) for name, one in left.items()}
        moved = {name: one for name, one in now.items() if one.above or one.below}
        kept |= moved or now
        left = {name: one for name, one in left.items() if name not in kept}
    return {name: kept[name] for name in estimates}


def jackknife(statistic: Callable[[Sequence[int]], float], count: int) -> Estimate | None:
    """Jackknife of a statistic that is not a mean: its value, and the standard error of its pseudo-values, each prompt left out
    in turn (Tukey 1958).

    Args:
        statistic: of the rows of some prompts; NaN where it has no value.
        count: K prompts.

    Returns:
        (K - 1) / K Σ_k (θ_-k - mean θ_-k)² is the error's square, which is not known where one's rest has no value; None where
        all of them have none.
    """
    whole, rest = statistic(range(count)), [statistic([i for i in range(count) if i != k]) for k in range(count)]
    if whole != whole:
        return None
    if count < 2 or any(value != value for value in rest):
        return Estimate(whole, ())
    middle = fsum(rest) / count
    return Estimate(whole, ((sqrt((count - 1) / count * fsum((one - middle) ** 2 for one in rest)), count - 1),))
