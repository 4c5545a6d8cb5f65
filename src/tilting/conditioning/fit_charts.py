"""Pictures of what a fitted classifier is worth: reliability.png, and confusion.png or predicted.png."""

from __future__ import annotations

from typing import Any

from tilting.conditioning.fit_label import FittedLabel, guessed
from tilting.conditioning.table import Column
from tilting.reports.charts import BLUE, GREY, ORANGE, axes, confusion, png


def charts(column: Column, fitted: FittedLabel) -> dict[str, bytes]:
    """PNG files by name."""
    drawn = {"reliability.png": _reliability(column, fitted.metrics)}
    if column.kind == "classes":
        return {**drawn, "confusion.png": _confusion(column, fitted.metrics["confusion"])}
    return {**drawn, "predicted.png": _predicted(column, fitted)}


def _reliability(column: Column, metrics: dict[str, Any]) -> bytes:
    """Claimed against true, before and after; the size of a point is the share of the records in its bin."""
    axis = axes()
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for when, t, colour in (("before", "1", ORANGE), ("after", f"{metrics['temperature']:.3g}", BLUE)):
        bins = [row for row in zip(*metrics["reliability"][when].values(), strict=True) if row[2]]
        confidence, accuracy, items = zip(*bins, strict=True)
        axis.plot(confidence, accuracy, color=colour, linewidth=1.2, label=f"T = {t}, ECE {metrics['ece'][when]:.3f}")
        axis.scatter(confidence, accuracy, s=[14 + 160 * n / sum(items) for n in items], color=colour)
    is_classes = column.kind == "classes"
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02), title=f"{column.name}, held out")
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
