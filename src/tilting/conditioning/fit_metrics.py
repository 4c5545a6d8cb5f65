"""What a fitted classifier is worth on held-out data, before and after its temperature, in numbers and pictures."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tilting.conditioning import calibrate
from tilting.config.label_columns import Column
from tilting.features.fitted import FittedClassifier, log_prob
from tilting.features.schema import Schema

if TYPE_CHECKING:
    from tilting.conditioning.calibrate import Reliability

BLUE, ORANGE, GREY = "#3366cc", "#d9622b", "#777777"
MOST_WRITTEN = 12
"""Classes above which counts are not written into the cells of a confusion matrix."""


def calibrated(
    classifier: FittedClassifier, outputs: Tensor, y: Tensor, column: Column
) -> tuple[FittedClassifier, dict[str, Any], dict[str, bytes]]:
    """Give a classifier its temperature, and say what it is worth; see `measured`."""
    schema, numbers, figures = measured(classifier.schema, outputs, y, column)
    return FittedClassifier(classifier.net, schema).eval().requires_grad_(False), numbers, figures


def measured(schema: Schema, outputs: Tensor, y: Tensor, column: Column) -> tuple[Schema, dict[str, Any], dict[str, bytes]]:
    """The temperature of a classifier, and what it is worth.

    Args:
        schema: of it, at temperature 1.
        outputs: (n, outputs) of the held-out records, on the CPU.
        y: (n,) indices of their classes, or their numbers.
        column: the label.

    Returns:
        The schema at its temperature; numbers; PNG files by name.
    """
    is_classes = schema.kind == "classes"
    gaps = torch.zeros(0) if is_classes else calibrate.gaps_of(schema, outputs, y)
    t = calibrate.temperature_of(schema, outputs, y)
    before_after: list[Reliability] = []
    errors, likelihoods = [], []
    for value in (1.0, t):
        likelihoods.append(-float(log_prob(schema, outputs, y, value).mean()))
        if is_classes:
            p = (outputs / value).softmax(-1)
            before_after.append(calibrate.reliability(p, y.long()))
            errors.append(calibrate.ece(p, y.long()))
        else:
            before_after.append(calibrate.gaussian_reliability(gaps / value**0.5))
            errors.append(calibrate.gaussian_ece(gaps / value**0.5))
    numbers: dict[str, Any] = {
        "label": column.name,
        "kind": column.kind,
        "classes": list(column.classes),
        "edges": list(column.edges),
        "temperature": t,
        "nll": {"before": likelihoods[0], "after": likelihoods[1]},
        "ece": {"before": errors[0], "after": errors[1], "bins": calibrate.BINS},
        "reliability": {"before": _listed(before_after[0]), "after": _listed(before_after[1])},
    }
    if is_classes:
        guesses = outputs.argmax(1)
        counts = calibrate.confusion(y, guesses, schema.outputs)
        numbers |= {
            "accuracy": float((guesses == y).double().mean()),
            "commonest": float(counts.sum(1).max() / counts.sum()),
            "macro_f1": calibrate.macro_f1(counts),
            "confusion": counts.tolist(),
        }
        shown = ("confusion.png", draw_confusion(column, counts))
    else:
        guesses = schema.shift + schema.scale * outputs[:, 0]
        r2 = calibrate.r_squared(y, guesses)
        numbers |= {
            "r2": r2 if r2 == r2 else None,
            "rmse": float((y - guesses).square().mean().sqrt()),
            "std": schema.std * t**0.5,
        }
        shown = ("predicted.png", draw_predicted(column, y, guesses, schema.std * t**0.5))
    figures = {"reliability.png": draw_reliability(column, before_after, errors, t), shown[0]: shown[1]}
    return replace(schema, temperature=t), numbers, figures


def by_noise(schema: Schema, outputs: Tensor, y: Tensor, sigma: Tensor, parts: int = 4) -> list[dict[str, Any]]:
    """What a classifier of noisy latents is worth in parts of equal count, least noise first.

    Args:
        schema: of it, at its temperature.
        outputs, y: of held-out noisy latents, as of `measured`.
        sigma: (n,) the noise of each.
        parts: how many.
    """
    found = []
    for rows in sigma.argsort().tensor_split(parts):
        mine, answers = outputs[rows], y[rows]
        said: dict[str, Any] = {"sigma": [float(sigma[rows].min()), float(sigma[rows].max())], "items": len(rows)}
        said["nll"] = -float(log_prob(schema, mine, answers).mean())
        if schema.kind == "classes":
            said["accuracy"] = float((mine.argmax(1) == answers).double().mean())
        else:
            said["rmse"] = float((answers - schema.shift - schema.scale * mine[:, 0]).square().mean().sqrt())
        found.append(said)
    return found


def _listed(found: Reliability) -> dict[str, list]:
    """As JSON, which has no NaN: null in an empty bin."""
    return {
        name: [None if v != v else v for v in getattr(found, name).tolist()] for name in ("confidence", "accuracy", "items")
    }


def _axes(width: float = 4.6, height: float = 4.4) -> tuple[Any, Any]:
    """A figure for files only: no window, no global state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def draw_reliability(column: Column, before_after: list[Reliability], errors: list[float], t: float) -> bytes:
    """Claimed against true, before and after; the size of a point is the share of the records in its bin."""
    figure, axis = _axes()
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    names = (f"T = 1, ECE {errors[0]:.3f}", f"T = {t:.3g}, ECE {errors[1]:.3f}")
    for found, error, colour in zip(before_after, names, (ORANGE, BLUE), strict=True):
        full = found.items > 0
        share = found.items[full] / found.items.sum()
        axis.plot(found.confidence[full], found.accuracy[full], color=colour, linewidth=1.2, label=error)
        axis.scatter(found.confidence[full], found.accuracy[full], s=(14 + 160 * share).tolist(), color=colour)
    is_classes = column.kind == "classes"
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02), title=f"{column.name}, held out")
    axis.set_xlabel("confidence" if is_classes else "level of the predicted distribution")
    axis.set_ylabel("accuracy" if is_classes else "share below it")
    axis.legend(frameon=False)
    return _png(figure)


def draw_confusion(column: Column, counts: Tensor) -> bytes:
    """Counts, shaded by the share of the row."""
    many = len(column.classes)
    side = min(3.0 + 0.5 * many, 12.0)
    figure, axis = _axes(side + 0.6, side)
    share = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [name if len(name) <= 18 else f"{name[:17]}…" for name in column.classes]
    axis.set_xticks(range(many), names, rotation=45, ha="right")
    axis.set_yticks(range(many), names)
    if many <= MOST_WRITTEN:
        for i in range(many):
            for j in range(many):
                axis.text(
                    j, i, str(int(counts[i, j])), ha="center", va="center", color="white" if share[i, j] > 0.5 else "black"
                )
    axis.set(xlabel="guessed", ylabel="true", title=f"{column.name}, held out")
    return _png(figure)


def draw_predicted(column: Column, y: Tensor, guesses: Tensor, std: float) -> bytes:
    """Predicted against true numbers, with a band of one standard deviation."""
    figure, axis = _axes()
    low, high = float(y.min()), float(y.max())
    axis.fill_between([low, high], [low - std, high - std], [low + std, high + std], color=BLUE, alpha=0.12, linewidth=0)
    axis.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle="--")
    axis.scatter(y, guesses, s=12, color=BLUE)
    axis.set(xlabel="true", ylabel="predicted, ± one standard deviation", title=f"{column.name}, held out")
    return _png(figure)
