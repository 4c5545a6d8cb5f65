"""A table of the CTRL paper made: labelled pictures of the base model, what is learnt from them, rows of pictures asked for
every class, and their numbers by the functions that label, never by a classifier.

A rival has a grid of strengths, each a row, and a line with the best of them chosen anew for each class, on the very pictures
that are reported: all of the luck is the rivals'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tilting.conditioning.calibrate import macro_f1
from tilting_papers.ctrl.artifacts import Artifacts
from tilting_papers.ctrl.claims import RIVALS, claims_of, hits, known
from tilting_papers.ctrl.figures import write_figures
from tilting_papers.ctrl.labels import Labelled, classes_of, read_scores
from tilting_papers.ctrl.sampling import Asked, Sampler
from tilting_papers.ctrl.study import Label, Study, best_name
from tilting_papers.numbers import Interval, Values, interval, mean
from tilting_papers.recipe import Report, Run

Cell = Mapping[str, Any]


def measure(run: Run) -> Report:
    """Make what is missing of a study: what table.json holds."""
    study: Study = run.recipe
    sampler, labels, size = Sampler(run), study.labels, study.tiny if run.small else study.size
    rows = [row for row in study.rows if row.small or not run.small]
    work = {part: [row for row in rows if row.part in ("", part)] for part in study.counts}
    taken = {part: sum(10.0 if row.family == "ctrl" else 1.0 for row in of) for part, of in work.items()}
    mine = run.share(taken)  # about the minutes on an idle core, a control's training included
    rows = [row for row in rows if row.part in ("", *mine) or sampler.drawn(row)]
    parts = {
        part: Artifacts(sampler, part, count).learn(
            {row.family for row in work[part]}, [row.gamma for row in work[part] if row.family == "ctrl"]
        )
        for part, count in study.counts.items()
        if any(row.part == part for row in rows) or part in mine
    }
    data = list(parts.values())[-1].data
    edges, cells = {name: one.edges for name, one in data.items()}, {}
    for i, row in enumerate(rows):
        run.say(f"row {i + 1} of {len(rows)}: {row.name}")
        made = parts[row.part].folders if row.part in parts else {}
        cells[row.name] = read(sampler.cells(row, made), labels, edges, run.out)
    lines = [_line(row.name, row.family, row.part, row.strength, cells[row.name], labels) for row in rows]
    lines = [{**line, "gamma": row.gamma} for line, row in zip(lines, rows, strict=True)]
    for family, part in product(RIVALS, parts):
        mine = {row.strength: cells[row.name] for row in rows if (row.family, row.part) == (family, part)}
        if len(mine) > 1:
            name = best_name(family, part)
            best = cells[name] = best_cells(list(mine.values()))
            which = [next(s for s, of in mine.items() if any(cell is one for one in of)) for cell in best]
            lines.append(_line(name, family, part, which, best, labels))
    report: Report = {"model": study.model, "steps": size.steps, "prompts": list(sampler.prompts), "images": size.images}
    report |= {
        "settings": {key.replace("_", "-"): value for key, value in study.settings.items()},
        "train_steps": size.train_steps,
        "batch": size.batch,
    }
    report["labels"] = {label.name: _about(label, data[label.name]) for label in labels}
    report["fits"] = {part: _worth(made.fits) for part, made in parts.items()}
    report["before"] = {part: _worth(made.before) for part, made in parts.items() if made.before}
    report |= {"costs": {part: made.costs for part, made in parts.items()}, "rows": lines, "published": dict(study.published)}
    claims, figures = claims_of(study, report, cells), write_figures(report, cells, labels, run.out)
    return {**report, "claims": claims, "figures": figures, "cells": cells}


def read(
    cells: Sequence[tuple[Asked, Path, Mapping[str, Any]]],
    labels: Sequence[Label],
    edges: Mapping[str, Sequence[float]],
    out: Path,
) -> list[dict[str, Any]]:
    """Read every picture of a row.

    Returns:
        Of each cell what was ``asked``, and lists over its images: ``prompts``, ``index``, ``judge``, ``kl``, ``scores`` and
        ``classes`` by label; ``evaluations`` and ``seconds`` of the run, and where it is.
    """
    by_folder: dict[Path, dict[str, list[float]]] = {}
    read_cells = []
    for asked, folder, manifest in cells:
        records, summary = manifest["images"], manifest["summary"]
        if folder not in by_folder:
            files = [folder / record["file"] for record in records]
            by_folder[folder] = {label.name: read_scores(label, files) for label in labels}
        scores = by_folder[folder]
        cell = {"asked": asked, "files": [r["file"] for r in records], "folder": str(folder.relative_to(out))}
        cell |= {"prompts": [r["prompt"] for r in records], "index": [r["index"] for r in records]}
        cell |= {"judge": [r["judge"] for r in records], "kl": [r.get("kl") for r in records], "scores": scores}
        cell |= {"classes": {name: classes_of(values, edges[name]) for name, values in scores.items()}}
        read_cells.append({**cell, "evaluations": summary["evaluations"], "seconds": summary["seconds"]})
    return read_cells


def confusion_of(cells: Sequence[Cell], label: Label) -> list[list[int]]:
    """Images by class asked (rows) and class seen."""
    counts = [[0] * len(label.classes) for _ in label.classes]
    for cell in cells:
        for y in cell["classes"][label.name]:
            counts[cell["asked"][label.name]][y] += 1
    return counts


def _share(values: Values) -> Interval:
    share = interval(values)
    assert share is not None
    return share


def numbers_of(cells: Sequence[Cell], labels: Sequence[Label]) -> dict[str, Any]:
    """A line of the table, but for what it cost to train."""
    by_label = {}
    for label in labels:
        name, counts = label.name, confusion_of(cells, label)
        by_class = [[cell["scores"][name] for cell in cells if cell["asked"][name] == y] for y in range(len(counts))]
        by_label[name] = {
            "accuracy": _share(hits(cells, name)),
            "macro_f1": macro_f1(torch.tensor(counts)),
            "confusion": counts,
            "per_class": [row[y] / sum(row) for y, row in enumerate(counts)],
            "mean_score": [mean([v for scores in mine for v in scores]) for mine in by_class],
        }
    runs = {cell["folder"]: (cell["evaluations"], cell["seconds"], len(cell["prompts"])) for cell in cells}
    evaluations, seconds, images = (sum(column) for column in zip(*runs.values(), strict=True))
    line = {
        "labels": by_label,
        "all": _share(hits(cells)),
        "judge": interval(known(cells, "judge")),
        "kl": interval(known(cells, "kl")),
    }
    return {**line, "evaluations": evaluations / images, "seconds": seconds / images, "images": images}


def _line(name: str, family: str, part: str, strength: Any, cells: Sequence[Cell], labels: Sequence[Label]) -> dict[str, Any]:
    return {"name": name, "family": family, "part": part, "strength": strength, **numbers_of(cells, labels)}


def best_cells(rows: Sequence[Sequence[Cell]]) -> list[Cell]:
    """For each combination asked for, the cell of the row that obeys it most often, the first of several."""
    return [max(cells, key=lambda cell: sum(hits([cell]).values())) for cells in zip(*rows, strict=True)]


def _worth(fits: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    keys = ("accuracy", "macro_f1", "temperature", "ece", "epochs", "records")
    return {name: {key: fit[key] for key in keys} for name, fit in fits.items()}


def _about(label: Label, data: Labelled) -> dict[str, Any]:
    about = {"unit": label.unit, "meaning": list(label.meaning), "quantiles": list(label.quantiles), "edges": list(data.edges)}
    counts = [data.classes.count(y) for y in range(len(label.classes))]
    return {**about, "pictures": len(data.files), "counts": counts, "scores": list(data.scores), "digest": data.digest}
