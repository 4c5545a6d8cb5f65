"""Charts of a fitted classifier: reliability.png, and confusion.png or predicted.png."""

from __future__ import annotations

import math
from typing import Any

from tilting.conditioning import calibrate
from tilting.conditioning.fit_label import FittedLabel, guessed
from tilting.conditioning.table import Column
from tilting.lazy import np
from tilting.reports.charts import BLUE, GREY, ORANGE, axes, confusion, png

FEWEST, PARTS = 10, 8
"""Records that a point is of, and points, at most."""


def charts(column: Column, fitted: FittedLabel) -> dict[str, bytes]:
    """PNG files by name."""
    drawn = {"reliability.png": _reliability(column, fitted.metrics)}
    if column.kind == "classes":
        return {**drawn, "confusion.png": _confusion(column, fitted.metrics["confusion"])}
    return {**drawn, "predicted.png": _predicted(column, fitted)}


def _reliability(column: Column, metrics: dict[str, Any]) -> bytes:
    """Claimed against true, with 95 % intervals: of classes Wilson's, each point with how many records it is of, bins of few
    put together; of a number the band in which shares lie by chance."""
    from scipy.stats import norm

    axis, n = axes(), metrics["records"]["held_out"]
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    rows = {
        when: [row for row in zip(*table.values(), strict=True) if row[2]] for when, table in metrics["reliability"].items()
    }
    if column.kind == "classes":
        each = sum(row[2] for row in rows["after"]) / n  # a record is looked at once, or at several noise levels
        least = math.ceil(each * max(FEWEST, n / PARTS))
        before, after = calibrate.pooled(rows["before"], least), calibrate.pooled(rows["after"], least)
        for confidence, accuracy, items in after:
            axis.vlines(confidence, *calibrate.wilson(accuracy, items / each), color=BLUE, linewidth=1.2)
            told = f"{items / each:.0f}"
            axis.annotate(told, (confidence, accuracy), (6, -12), textcoords="offset points", color=BLUE, size=9)
    else:
        before, after = rows["before"], rows["after"]
        levels = np.linspace(0, 1, 101)
        off = norm.ppf(0.975) * np.sqrt(levels * (1 - levels) / n)
        axis.fill_between(levels, levels - off, levels + off, color=GREY, alpha=0.15, linewidth=0)
    for when, points, colour in (("before", before, ORANGE), ("after", after, BLUE)):
        t = 1 if when == "before" else metrics["temperature"]
        x, y = [row[0] for row in points], [row[1] for row in points]
        label = f"T = {t:.3g}, ECE {metrics['ece'][when]:.3f}"
        axis.plot(x, y, "o-", color=colour, linewidth=1.2, markersize=5, alpha=0.5 if when == "before" else 1, label=label)
    is_classes = column.kind == "classes"
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02))
    chance = f"; ECE by chance alone {metrics['ece']['chance']:.3f}" if "chance" in metrics["ece"] else ""
    axis.set_title(f"{column.name}, {n} held out{chance}\n{calibrate.of_temperature(metrics['temperature'])}", size=10)
    axis.set_xlabel("confidence" if is_classes else "level of the predicted distribution")
    axis.set_ylabel("accuracy" if is_classes else "share below it")
    axis.legend(frameon=False)
    return png(axis)


def _confusion(column: Column, counts: list[list[int]]) -> bytes:
    """Counts, shaded by the share of the row."""
    side = min(3.0 + 0.5 * len(column.classes), 12.0)
    axis = axes(side + 0.6, side)
    confusion(axis, column.classes, column.classes, counts)
    axis.set(xlabel="guessed", ylabel="true", title=f"{column.name}, held out")
    return png(axis)


def _predicted(column: Column, fitted: FittedLabel) -> bytes:
    """Predicted against true numbers, with a band of one standard deviation."""
    axis, y, std = axes(), fitted.y, fitted.metrics["std"]
    low, high = float(y.min()), float(y.max())
    axis.fill_between([low, high], [low - std, high - std], [low + std, high + std], color=BLUE, alpha=0.12, linewidth=0)
    axis.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle="--")
    axis.scatter(y.tolist(), guessed(fitted.classifier.schema, fitted.outputs).tolist(), s=12, color=BLUE)
    axis.set(xlabel="true", ylabel="predicted, ± one standard deviation", title=f"{column.name}, held out")
    return png(axis)
