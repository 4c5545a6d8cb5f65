"""Zhao et al. 2024, sections 1 and 5.2: the claim of sample efficiency. Accuracy against the number of labelled pairs, CTRL
beside classifier-free fine-tuning, at pocket's size.

The pairs are the base model's own pictures, each part a subset of the next. What CTRL asks of them is a classifier; what
classifier-free fine-tuning asks of them is the law of the pictures itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tilting_papers.ctrl.claims import above
from tilting_papers.ctrl.study import CTRL, FULL, SIZE, Cells, Row, Study, best_name
from tilting_papers.recipe import Report, Run, later

COUNTS, SMALL_COUNTS = (100, 400, 1600), (60, 120)
QUARTERS = replace(SIZE, quantiles=(0.25, 0.5, 0.75))
"""Four classes of equal share, so that a hundred pictures have enough of each."""


def claims(report: Report, cells: Cells) -> list[dict[str, Any]]:
    """That few pairs are enough for CTRL."""
    few, *_, many = report["fits"]
    text = f"CTRL with {few} pairs is above classifier-free fine-tuning with {many}"
    quoted = "CTRL uses the labelled data in a sample-efficient manner"
    return [above(text, cells[f"ctrl-{few}"], cells[best_name("free", many)], quoted)]


def _rows(counts: Sequence[int]) -> tuple[Row, ...]:
    rows = [Row("base", "base")]
    for n in counts:
        rows.append(Row(f"ctrl-{n}", "ctrl", part=str(n)))
        rows += [Row(f"free-{n}-{gamma}", "free", gamma, part=str(n), small=gamma in (1, 3)) for gamma in (1, 3, 8, 25, 75)]
    return tuple(rows)


def measure(run: Run) -> Report:
    """The small run has other counts of pairs."""
    small = replace(STUDY, rows=_rows(SMALL_COUNTS), counts={str(n): n for n in SMALL_COUNTS})
    return later("ctrl.measure:measure")(replace(run, recipe=small) if run.small else run)


STUDY = Study(
    name="ctrl-data",
    about="accuracy against the number of labelled pairs, CTRL and classifier-free fine-tuning",
    paper=f"{CTRL}, sections 1 and 5.2",
    after="Zhao et al. 2024, sections 1 and 5.2 (no figure of theirs)",
    measure=measure,
    rows=_rows(COUNTS),
    labels=(QUARTERS,),
    size=replace(FULL, data=80, copies=0, second_round=0),
    counts={str(n): n for n in COUNTS},
    worst=None,
    claims=claims,
    notes=(
        "The classifiers have the pairs alone: altered copies and a second round ask the function for more labels.",
        "Ten thousand pairs do not fit the time of a recipe: the base model would draw them for an hour.",
    ),
)
