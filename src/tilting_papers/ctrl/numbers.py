"""Numbers of a CTRL recipe's rows, from the pictures on disk: what was asked for against what the labelling functions see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting_papers.ctrl.labels import Label, classes_of
from tilting_papers.ctrl.rows import Cell
from tilting_papers.numbers import Interval, interval

Values = dict[tuple[int, str, int], float]
"""A number of every image, by (cell, prompt, number within it)."""


def look(
    cells: Sequence[Cell], labels: Sequence[Label], edges: Mapping[str, Sequence[float]], out: Path
) -> list[dict[str, Any]]:
    """Read every picture of a row.

    Returns:
        Of each cell what was ``asked``, and lists over its images: ``prompts``, ``index``, ``judge``, ``kl``, ``scores`` and
        ``classes`` by label; ``evaluations`` and ``seconds`` of the run, and where it is.
    """
    read: dict[str, dict[str, list[float]]] = {}
    found = []
    for cell in cells:
        records = cell.manifest["images"]
        place = str(cell.folder)
        if place not in read:
            files = [cell.folder / record["file"] for record in records]
            read[place] = {label.name: label.read(files) for label in labels}
        scores, summary = read[place], cell.manifest["summary"]
        found.append({
            "asked": cell.asked, "files": [record["file"] for record in records], "folder": str(cell.folder.relative_to(out)),
            "prompts": [r["prompt"] for r in records], "index": [r["index"] for r in records],
            "judge": [r["judge"] for r in records], "kl": [r.get("kl") for r in records], "scores": scores,
            "classes": {name: classes_of(values, edges[name]) for name, values in scores.items()},
            "evaluations": summary["evaluations"], "seconds": summary["seconds"],
        })  # fmt: skip
    return found


def hits(cells: Sequence[Mapping[str, Any]], label: str | None = None) -> Values:
    """1 where an image is of the class asked for (of all labels without a name), else 0."""
    found: Values = {}
    for k, cell in enumerate(cells):
        for i, (prompt, index) in enumerate(zip(cell["prompts"], cell["index"], strict=True)):
            names = cell["asked"] if label is None else [label]
            found[k, prompt, index] = float(all(cell["classes"][n][i] == cell["asked"][n] for n in names))
    return found


def confusion_of(cells: Sequence[Mapping[str, Any]], label: Label) -> list[list[int]]:
    """Images by class asked (rows) and class seen."""
    counts = [[0] * len(label.classes) for _ in label.classes]
    for cell in cells:
        for seen in cell["classes"][label.name]:
            counts[cell["asked"][label.name]][seen] += 1
    return counts


def share(values: Values) -> Interval:
    """The mean and its interval, whole prompts resampled."""
    found = interval(values)
    assert found is not None
    return found


def _known(cells: Sequence[Mapping[str, Any]], key: str) -> Interval | None:
    values = {(k, p, i): v for k, cell in enumerate(cells)
              for p, i, v in zip(cell["prompts"], cell["index"], cell[key], strict=True) if v is not None}  # fmt: skip
    return interval(values) if values else None


def numbers_of(cells: Sequence[Mapping[str, Any]], labels: Sequence[Label]) -> dict[str, Any]:
    """A line of the table, but for what it cost to train."""
    import torch

    from tilting.conditioning.calibrate import macro_f1

    by_label = {}
    for label in labels:
        counts = confusion_of(cells, label)
        scores = [[v for cell in cells if cell["asked"][label.name] == y for v in cell["scores"][label.name]]
                  for y in range(len(label.classes))]  # fmt: skip
        by_label[label.name] = {
            "accuracy": share(hits(cells, label.name)), "macro_f1": macro_f1(torch.tensor(counts)), "confusion": counts,
            "per_class": [row[y] / sum(row) for y, row in enumerate(counts)], "mean_score": [sum(s) / len(s) for s in scores],
        }  # fmt: skip
    runs = {cell["folder"]: (cell["evaluations"], cell["seconds"], len(cell["prompts"])) for cell in cells}
    images = sum(n for _, _, n in runs.values())
    return {
        "labels": by_label, "all": share(hits(cells)), "judge": _known(cells, "judge"), "kl": _known(cells, "kl"),
        "evaluations": sum(e for e, _, _ in runs.values()) / images, "seconds": sum(s for _, s, _ in runs.values()) / images,
        "images": images,
    }  # fmt: skip


def best_cells(rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """For each combination asked for, the cell of the row that obeys it most often, the first of several."""
    found = []
    for cells in zip(*rows, strict=True):
        means = [sum(hits([cell]).values()) for cell in cells]
        found.append(cells[means.index(max(means))])
    return found
