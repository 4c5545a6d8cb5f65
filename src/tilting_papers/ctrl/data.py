"""Zhao et al. 2024, sections 1 and 5.2: the claim of sample efficiency. Accuracy against the number of labelled pairs, CTRL
beside classifier-free fine-tuning, at pocket's size.

The pairs are the base model's own pictures, each part a subset of the next. What CTRL asks of them is a classifier; what
classifier-free fine-tuning asks of them is the law of the pictures itself. A classifier of few pictures is easily fooled by
what climbs it, so that there are several kinds, all with the same number of optimiser steps, and a grid of γ for each as there
is one of strengths for the rival. Of either the line is chosen on half of the prompts, the most accurate whose judge is within
`ROOM` of the base model's, and the two are compared on the other half: accuracy at matched judge.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from tilting_papers.ctrl.claims import hits, known
from tilting_papers.ctrl.study import CTRL, FULL, SIZE, Cells, Row, Study
from tilting_papers.numbers import Finding, Values, difference, interval, mean
from tilting_papers.page import claimed, number, shown
from tilting_papers.prompts import ANIMALS, OBJECTS
from tilting_papers.recipe import Report, Run, later

COUNTS, SMALL_COUNTS = (100, 400, 1600), (60, 120)
QUARTERS = replace(SIZE, quantiles=(0.25, 0.5, 0.75))
"""Four classes of equal share, so that a hundred pictures have enough of each."""
KINDS = ("cnn", "mlp", "pool")
"""Of classifiers of the fewest pictures; of more there is the pool alone."""
GAMMAS = (200.0, 800.0, 2560.0)
"""By 7680, the γ of the other tables, the judge falls more than `ROOM` even with 1600 pictures."""
STRENGTHS = (1, 3, 8, 25, 75)
ROOM = 0.5
"""Nats of the judge below the base model's that a line may have cost, on the prompts it is chosen on."""


def halves(cells: Cells) -> tuple[set[str], set[str]]:
    """The prompts that lines are chosen on, and those that they are compared on: every second one."""
    prompts = list(dict.fromkeys(cells["base"][0]["prompts"]))
    return set(prompts[::2]), set(prompts[1::2])


def judged(cells: Sequence[Any], prompts: Collection[str]) -> Values:
    """The judge's numbers of pictures of these prompts."""
    return {key: value for key, value in known(cells, "judge").items() if key[1] in prompts}


def right(cells: Sequence[Any], prompts: Collection[str]) -> Values:
    """1 where a picture of these prompts is of the class asked for, else 0."""
    return {key: value for key, value in hits(cells).items() if key[1] in prompts}


def chosen(names: Sequence[str], cells: Cells) -> str | None:
    """Of lines that are there, the one that obeys most often on the prompts to choose on, of those whose judge is near the base
    model's; of none such, the one whose judge is the best."""
    choice, there = halves(cells)[0], [name for name in names if name in cells]
    if not there:
        return None
    judges = {name: mean([*judged(cells[name], choice).values()]) for name in (*there, "base")}
    near = [name for name in there if judges[name] >= judges["base"] - ROOM]
    if not near:
        return max(there, key=lambda name: judges[name])
    return max(near, key=lambda name: mean([*right(cells[name], choice).values()]))


def compared(ours: Sequence[str], theirs: Sequence[str], cells: Cells) -> Finding | None:
    """That the chosen line of one kind is above that of another on the other prompts, and what the judge says of both there."""
    a, b = chosen(ours, cells), chosen(theirs, cells)
    if a is None or b is None:
        return None
    test = halves(cells)[1]
    judge = interval(judged(cells[a], test), judged(cells[b], test))
    levels = [number(mean([*right(cells[name], test).values()]), 3) for name in (a, b)]
    unit = f"({a} {levels[0]}, {b} {levels[1]}; judge {shown(judge, sign=True)})"
    return difference(right(cells[a], test), right(cells[b], test), unit)


def controls(count: int | str, kinds: Sequence[str] = KINDS) -> list[str]:
    """Lines of CTRL with so many pairs, those that there are."""
    return [f"ctrl-{count}-{kind}-{gamma:g}" for kind in kinds for gamma in GAMMAS]


def free(count: int | str) -> list[str]:
    """Lines of classifier-free fine-tuning with so many pairs."""
    return [f"free-{count}-{strength}" for strength in STRENGTHS]


def claims(report: Report, cells: Cells) -> list[dict[str, Any]]:
    """That CTRL needs fewer pairs, and what makes a control of few pairs true."""
    counts = sorted({part.partition("-")[0] for part in report["fits"]}, key=int)
    quoted = "CTRL uses the labelled data in a sample-efficient manner"
    made = []
    for n in counts:
        text = f"at matched judge, CTRL with {n} pairs is above classifier-free fine-tuning with {n}"
        made.append(claimed(text, quoted, compared(controls(n), free(n), cells)))
    few, many = counts[0], counts[-1]
    text = f"at matched judge, CTRL with {few} pairs is above classifier-free fine-tuning with {many}"
    made.append(claimed(text, quoted, compared(controls(few), free(many), cells)))
    for kind, what in (("mlp", "a head on frozen embeddings"), ("pool", "three CNNs' averaged logits")):
        text = f"at matched judge, {what} is a better classifier of {few} pairs than one CNN"
        made.append(claimed(text, "one network", compared(controls(few, (kind,)), controls(few, ("cnn",)), cells)))
    return made


def _rows(counts: Sequence[int]) -> tuple[Row, ...]:
    rows = [Row("base", "base")]
    for n, kind in _pairs(counts):
        part = f"{n}-{kind}"
        rows += [Row(f"ctrl-{part}-{gamma:g}", "ctrl", part=part, gamma=gamma, small=gamma == GAMMAS[0]) for gamma in GAMMAS]
    rows += [Row(f"free-{n}-{s}", "free", s, part=f"{n}-{KINDS[-1]}", small=s in (1, 3)) for n in counts for s in STRENGTHS]
    return tuple(rows)


def _pairs(counts: Sequence[int]) -> list[tuple[int, str]]:
    return [(n, kind) for n in counts for kind in (KINDS if n == counts[0] else KINDS[-1:])]


def _parts(counts: Sequence[int]) -> dict[str, Any]:
    parts = {f"{n}-{kind}": (n, kind) for n, kind in _pairs(counts)}
    return {"counts": {p: n for p, (n, _) in parts.items()}, "kinds": {p: k for p, (_, k) in parts.items()}}


def measure(run: Run) -> Report:
    """The small run has other counts of pairs."""
    small = replace(STUDY, rows=_rows(SMALL_COUNTS), **_parts(SMALL_COUNTS))
    return later("ctrl.measure:measure")(replace(run, recipe=small) if run.small else run)


STUDY = Study(
    name="ctrl-data",
    about="accuracy against the number of labelled pairs, CTRL and classifier-free fine-tuning",
    paper=f"{CTRL}, sections 1 and 5.2",
    after="Zhao et al. 2024, sections 1 and 5.2 (no figure of theirs)",
    measure=measure,
    rows=_rows(COUNTS),
    labels=(QUARTERS,),
    prompts=(*ANIMALS, *OBJECTS),
    size=replace(FULL, data=40, copies=0, second_round=0, fit_steps=500),
    worst=None,
    claims=claims,
    sharded=True,
    **_parts(COUNTS),
    notes=(
        "Of a pool, what stands above of held-out pictures is of the first of its three networks.",
        "The classifiers have the pairs alone: altered copies and a second round ask the function for more labels. All have "
        "500 optimiser steps, whatever the number of pairs.",
        "A claim at matched judge chooses either side's line on every second prompt, the most accurate whose judge is at most "
        f"{ROOM:g} nats below the base model's, and compares the two on the others.",
        "Ten thousand pairs do not fit the time of a recipe: the base model would draw them for an hour.",
    ),
)
