"""Zhao et al. 2024, sections 1 and 5.2: the claim of sample efficiency. Accuracy against the number of labelled pairs, CTRL
beside classifier-free fine-tuning, at pocket's size.

The pairs are the base model's own pictures, each part a subset of the next. What CTRL asks of them is a classifier; what
classifier-free fine-tuning asks of them is the law of the pictures itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tilting_papers.ctrl.labels import SIZE
from tilting_papers.ctrl.rows import Row
from tilting_papers.ctrl.study import FULL, Study, above, best_name, run_control_study
from tilting_papers.folder import Report, Say

COUNTS, SMALL_COUNTS = (100, 400, 1600), (60, 120)
QUARTERS = replace(SIZE, quantiles=(0.25, 0.5, 0.75))
"""Four classes of equal share, so that a hundred pictures have enough of each."""


def study_of(counts: Sequence[int]) -> Study:
    """The study of so many labelled pairs."""

    def claims(report: Report, seen: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        few, many = counts[0], counts[-1]
        text = f"CTRL with {few} pairs is above classifier-free fine-tuning with {many}"
        said = "CTRL uses the labelled data in a sample-efficient manner"
        return [above(text, seen[f"ctrl-{few}"], seen[best_name("free", str(many))], said)]

    rows = [Row("base", "base")]
    for n in counts:
        rows.append(Row(f"ctrl-{n}", "ctrl", part=str(n)))
        rows += [Row(f"free-{n}-{gamma}", "free", gamma, part=str(n), small=gamma in (1, 3)) for gamma in (1, 3, 8, 25, 75)]
    return Study(
        "ctrl-data", "accuracy against the number of labelled pairs, CTRL and classifier-free fine-tuning",
        "Zhao et al. 2024, sections 1 and 5.2 (no figure of theirs)", tuple(rows), (QUARTERS,),
        replace(FULL, data=80, copies=0, again=0),
        counts={str(n): n for n in counts}, worst=None, claims=claims,
        notes=("The classifiers have the pairs alone: altered copies and a second round ask the function for more labels.",
               "Ten thousand pairs do not fit the time of a recipe: the base model would draw them for an hour.",),
    )  # fmt: skip


def run(out: Path, small: bool, say: Say, seed: int = 0, quiet: bool = True) -> Report:
    """Make the table, or what is missing of it; as of `run_control_study`."""
    return run_control_study(study_of(SMALL_COUNTS if small else COUNTS), out, small, say, seed, quiet)
