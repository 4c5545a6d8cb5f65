"""Calibration of p(y | x) (Guo et al. 2017, as in CTRL's appendix D.1).

    ECE = Σ_m (n_m / n) |accuracy of bin m - mean confidence of bin m|,   bin m: (m - 1)/M < max_y p(y | x) <= m/M
    T   = argmin_T  -Σ_i log softmax(z_i / T)_{y_i},   convex in 1/T; LBFGS on log T

For a number the probabilities are those of its cumulative distribution: N(m, std²) says that y <= m + std Φ^-1(p) with
probability p (Kuleshov et al. 2018), and T = mean of ((y - m) / std)² in closed form. Pure functions of
tensors, in float64 on the CPU: some devices have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tilting.errors import TiltingError
from tilting.features.schema import Schema

BINS = 15
"""As in Guo et al."""
HOTTEST = 100.0
"""The largest T: what is worse than no guess at all has none that is finite."""


class Reliability(NamedTuple):
    """A reliability diagram.

    Attributes:
        confidence: (bins,) mean of what was claimed in each bin; NaN in an empty one.
        accuracy: (bins,) the share that came true; NaN in an empty one.
        items: (bins,) how many there are in each.
    """

    confidence: Tensor
    accuracy: Tensor
    items: Tensor


def reliability(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Confidence of the likeliest class against its accuracy, in bins of equal width.

    Args:
        probabilities: (n, classes), rows of which sum to 1.
        labels: (n,) indices of the true classes.
        bins: M, at least 1.

    Raises:
        TiltingError: shapes that do not fit, or rows that are no probabilities.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels) or bins < 1:
        raise TiltingError(f"{tuple(probabilities.shape)} probabilities and {tuple(labels.shape)} labels in {bins} bins")
    p, labels = probabilities.cpu().double(), labels.cpu()
    if not (p.min() >= 0 and (p.sum(1) - 1).abs().max() < 1e-3):
        raise TiltingError("probabilities must be at least 0 and sum to 1 in each row: give them after the softmax")
    confidence, guess = p.max(1)
    bin_of = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    count = torch.bincount(bin_of, minlength=bins)
    right = (guess == labels).double()
    means = [torch.bincount(bin_of, weights=v, minlength=bins) / count for v in (confidence, right)]
    return Reliability(means[0], means[1], count)


def pooled(diagram: Sequence[tuple[float, float, int]], least: int) -> list[tuple[float, float, int]]:
    """Neighbouring bins put together until each holds at least so many, what is left over into the last one: two records say
    nothing of an accuracy.

    Args:
        diagram: (confidence, accuracy, items) of the bins that are not empty, in order.
        least: items.
    """
    groups: list[list[tuple[float, float, int]]] = []
    for one in diagram:
        if groups and sum(n for _, _, n in groups[-1]) < least:
            groups[-1].append(one)
        else:
            groups.append([one])
    if len(groups) > 1 and sum(n for _, _, n in groups[-1]) < least:
        groups[-2:] = [groups[-2] + groups[-1]]
    counts = [sum(n for _, _, n in group) for group in groups]
    return [
        (sum(c * n for c, _, n in group) / count, sum(a * n for _, a, n in group) / count, count)
        for group, count in zip(groups, counts, strict=True)
    ]


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share of so many independent trials (Wilson 1927)."""
    z = 1.959963984540054
    middle, half = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)


def of_temperature(value: float) -> str:
    """T in words."""
    if abs(value - 1) < 0.05:
        return f"T = {value:.3g} (as sure as it is right)"
    less = "more" if value > 1 else "less"
    return f"T = {value:.3g} (it was {less} sure than right; {'softened' if value > 1 else 'sharpened'} by that)"


def ece(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error in [0, 1]; arguments as in `reliability`."""
    diagram = reliability(probabilities, labels, bins)
    gap = (diagram.accuracy - diagram.confidence).abs().nan_to_num(0.0)
    return float((gap * diagram.items).sum() / diagram.items.sum())


def ece_by_chance(confidence: Tensor, bins: int = BINS, draws: int = 200) -> float:
    """The mean `ece` of classifiers that are exactly as sure as they are right, of as few records: what one is compared with.

    Args:
        confidence: (n,) of the likeliest class, in (0, 1].
        bins: as in `ece`.
        draws: how often it is drawn which records were right, by a seed of its own.
    """
    sure = confidence.detach().cpu().double()
    right = torch.rand(draws, len(sure), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) < sure
    bin_of = (sure * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gaps = torch.zeros(draws, bins, dtype=torch.float64).index_add_(1, bin_of, right.double() - sure)
    return float(gaps.abs().sum(1).mean()) / len(sure)


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T > 0 of maximum likelihood.

    Args:
        logits: (n, classes).
        labels: (n,) indices of the true classes.

    Returns:
        T, at most `HOTTEST`. 1 if every label has the largest logit: the likelihood rises for ever as T falls to 0 then, and
        says nothing of how sure to be.

    Raises:
        TiltingError: no logits, or some that are not finite.
    """
    z, y = logits.detach().cpu().double(), labels.cpu().long()
    if z.ndim != 2 or y.shape != z.shape[:1] or not len(y) or not z.isfinite().all():
        raise TiltingError(f"a temperature needs finite logits (n, classes) and n labels, not {tuple(z.shape)}")
    picked = z.gather(1, y[:, None])[:, 0]
    if bool((picked == z.amax(1)).all()):
        return 1.0
    if picked.mean() <= z.mean():  # the slope of the likelihood at 1/T = 0
        return HOTTEST
    log_t = torch.zeros((), dtype=torch.float64, device="cpu", requires_grad=True)
    spread = (z - z.mean(1, keepdim=True)).std().clamp_min(1e-12)
    with torch.no_grad():
        log_t.copy_(spread.log().clamp(-20, 20))  # logits of unit spread to begin with
    optimiser = torch.optim.LBFGS(
        [log_t], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        scaled = z * torch.exp(-log_t)
        value = (scaled.logsumexp(1) - scaled.gather(1, y[:, None])[:, 0]).mean()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[arg-type]
    return min(math.exp(float(log_t.detach())), HOTTEST)


def gaussian_temperature(gaps: Tensor) -> float:
    """T of N(m, T std²): the mean square of gaps (n,) (y - m) / std; above 0. Raises TiltingError if it is not."""
    value = float(gaps.detach().cpu().double().square().mean()) if len(gaps) else math.nan
    if not (math.isfinite(value) and value > 0):
        raise TiltingError(f"a temperature needs finite gaps that are not all 0, their mean square is {value}")
    return value


def gaps_of(schema: Schema, outputs: Tensor, y: Tensor) -> Tensor:
    """(n,) (y - m) / std of a number's outputs (n, 1)."""
    return ((y - schema.shift).to(outputs) - schema.scale * outputs[:, 0]) / schema.std


def temperature_of(schema: Schema, outputs: Tensor, y: Tensor) -> float:
    """T of a label at temperature 1, from the outputs (n, ...) of held-out records and their y (n,)."""
    if schema.kind == "classes":
        return temperature(outputs, y.long())
    return gaussian_temperature(gaps_of(schema, outputs, y))


def gaussian_reliability(gaps: Tensor, bins: int = BINS) -> Reliability:
    """Levels p of the cumulative distribution against the share of y below it.

    Args:
        gaps: (n,) (y - m) / std.
        bins: how many levels, at (k - 1/2) / bins.

    Returns:
        ``confidence`` the levels, ``accuracy`` the shares, ``items`` n everywhere.
    """
    levels = (torch.arange(bins, dtype=torch.float64, device="cpu") + 0.5) / bins
    below = torch.special.ndtr(gaps.cpu().double())
    shares = (below[:, None] <= levels).double().mean(0)
    return Reliability(levels, shares, torch.full((bins,), len(gaps), device="cpu"))


def gaussian_ece(gaps: Tensor, bins: int = BINS) -> float:
    """The mean distance between levels and shares, in [0, 1]; arguments as in `gaussian_reliability`."""
    diagram = gaussian_reliability(gaps, bins)
    return float((diagram.accuracy - diagram.confidence).abs().mean())


def gaussian_ece_by_chance(count: int, bins: int = BINS, draws: int = 200) -> float:
    """The mean `gaussian_ece` of gaps that are standard normal, of so many records; arguments as of `ece_by_chance`."""
    normal = torch.randn(draws, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return sum(gaussian_ece(gaps, bins) for gaps in normal) / draws


def confusion(labels: Tensor, guesses: Tensor, classes: int) -> Tensor:
    """(classes, classes) counts: rows what is true, columns what was guessed."""
    pairs = labels.long().cpu() * classes + guesses.long().cpu()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def macro_f1(counts: Tensor) -> float:
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that occur among truths or guesses, from a confusion matrix."""
    counts = counts.cpu().double()
    total = counts.sum(0) + counts.sum(1)
    scores = 2 * counts.diag() / total
    return float(scores[total > 0].mean())


def r_squared(y: Tensor, guesses: Tensor) -> float:
    """1 - Σ (y - m)² / Σ (y - mean y)²; 0 for a guess of the mean, negative for worse; NaN where y is constant."""
    y, guesses = y.cpu().double(), guesses.cpu().double()
    total = (y - y.mean()).square().sum()
    return float(1 - (y - guesses).square().sum() / total) if total > 0 else math.nan
