"""table.md of a CTRL recipe, from what its report holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilting_papers.ctrl.study import control_name
from tilting_papers.numbers import OVER_PROMPTS
from tilting_papers.page import NONE, claims, number, page, shown, table, tried

READING = (
    f"Accuracy is by the function that labels, on the pictures as they are on disk; no classifier has a say. {OVER_PROMPTS}",
    '"best" takes, for each class, the strength of the grid that obeys it most often on these very pictures: the luck is '
    "the rivals'.",
    "The judge is pocket-judge, which nothing is trained or guided by; the path KL is to the base model, exact, of the "
    "chains as drawn. High accuracy with a fallen judge is bought by ruined pictures.",
    "Seconds are of the machine as it was then. Evaluations are of the denoiser in sampling; a CFG pair counts as one, "
    "with what a control adds to it.",
)


def _lists(values: Sequence[float], digits: int = 2) -> str:
    return " / ".join(number(v, digits) for v in values)


def rows_table(report: Mapping[str, Any]) -> list[str]:
    """The lines of the table."""
    labels, published = report["labels"], report["published"]
    heads, lines = ["row", "strength"], []
    for name in labels:
        heads += [f"accuracy, {name}", f"macro F1, {name}", f"per class, {name}"]
        heads.append(f"mean score per class ({labels[name]['unit']})")
    heads += ["all labels"] if len(labels) > 1 else []
    heads += ["judge (log p)", "path KL (nats)", "evaluations/image", "s/image", "training s"]
    heads += ["published"] if published else []
    for row in report["rows"]:
        several = row["strength"] if isinstance(row["strength"], list) else [row["strength"]]
        cells = [row["name"], NONE if row["family"] == "base" else _lists(several, 3)]
        for part in map(row["labels"].get, labels):
            cells += [shown(part["accuracy"]), number(part["macro_f1"], 3)]
            cells += [_lists(part["per_class"]), _lists(part["mean_score"], 3)]
        made_by = control_name(row.get("gamma")) if row["family"] == "ctrl" else row["family"]
        paid = report["costs"].get(row["part"], {}).get(made_by, {}).get("seconds")
        cells += [shown(row["all"])] if len(labels) > 1 else []
        cells += [shown(row["judge"]), number(row["kl"] and row["kl"]["mean"], 3), number(row["evaluations"], 3)]
        cells += [number(row["seconds"], 2), NONE if paid is None else f"{paid:.0f}"]
        cells += [published.get(row["name"], NONE)] if published else []
        lines.append(cells)
    return table(heads, lines)


def labels_table(report: Mapping[str, Any]) -> list[str]:
    """What the classes are, and how many of the base model's pictures are of each."""
    lines = []
    for name, about in report["labels"].items():
        lows = ["", *(f"at least {number(edge)}" for edge in about["edges"])]
        highs = [*(f"below {number(edge)}" for edge in about["edges"]), ""]
        for y, (meaning, low, high) in enumerate(zip(about["meaning"], lows, highs, strict=True)):
            count, span = about["counts"][y], " and ".join(filter(None, (low, high)))
            lines.append([name, y, meaning, f"{span} {about['unit']}", f"{count} ({count / about['pictures']:.0%})"])
    return table(["label", "class", "meaning", "score", "labelled pictures"], lines)


def _fits(report: Mapping[str, Any]) -> list[str]:
    """What the classifiers are worth."""
    parts = [(fits, f" of {part}" if part else "") for part, fits in report["fits"].items()]
    parts += [(fits, f"{f' of {part}' if part else ''} of the first round") for part, fits in report["before"].items()]
    return [
        f"The classifier of {name}{of} learnt from {fit['records']['learn']} pictures; on "
        f"{fit['records']['held_out']} held out: accuracy {number(fit['accuracy'], 3)}, macro F1 "
        f"{number(fit['macro_f1'], 3)}, ECE {number(fit['ece']['before'], 2)} before and {number(fit['ece']['after'], 2)} "
        f"after temperature {number(fit['temperature'], 3)}."
        for fits, of in parts
        for name, fit in fits.items()
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """The page."""
    settings = "".join(f", {k} {v}" for k, v in report["settings"].items())
    trained = any(row["family"] == "ctrl" for row in report["rows"])
    ctrl = f"; CTRL {report['train_steps']} steps of {report['batch']} images{settings}" if trained else ""
    ours = (
        f"Ours: {report['model']}, T = {report['steps']}, seed {report['seed']}, "
        f"{len(report['prompts'])} prompts x {report['images']} images for each class, the same noise for every row"
        f"{ctrl}{tried(report)}."
    )
    body = [*rows_table(report), "", "## The labels", "", *labels_table(report), *claims(report["claims"])]
    return page(report, ours, body, [*_fits(report), *READING])
