"""What auto takes beside every single method at its cost, on rewards that its table never saw: per cell, and over all cells.

behind = mean_i (auto_i - best_i),  judge = mean_i (auto_i - base_i),  with Holm's t intervals over prompts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import Any

from tilting.config.auto import choose
from tilting.metrics.statistics import holm
from tilting_papers.field.cells import Manifests, Row, drawn, settled
from tilting_papers.field.page import whole
from tilting_papers.numbers import Values, estimated, image_values, mean
from tilting_papers.page import NONE, claimed, claims, number, shown, table
from tilting_papers.recipe import Report, Run

BASE = "base"


@dataclass(frozen=True)
class Cell:
    """A reward at a budget, all of whose methods have been run.

    Attributes:
        reward, budget: which.
        gradient: whether the reward's may be used.
        taken: the method that auto takes.
        rewards, judges: of the images, by method, base among them.
    """

    reward: str
    budget: int
    gradient: bool
    taken: str
    rewards: Mapping[str, Values]
    judges: Mapping[str, Values]

    @property
    def spread(self) -> float:
        """The standard deviation of base's reward, which gains are told in; 1 where it has none."""
        return pstdev(self.rewards[BASE].values()) or 1.0

    def gain(self, method: str) -> float:
        """Over base, in its spreads."""
        ours, base = (mean(list(self.rewards[one].values())) for one in (method, BASE))
        return (ours - base) / self.spread


def measure(run: Run) -> Report:
    """Draw what is missing, and hold auto against what is there."""
    run = settled(run)
    rows, manifests, held = drawn(run)
    return {**held, **compared(cells_of(run, rows, manifests))}


def cells_of(run: Run, rows: Sequence[Row], manifests: Manifests) -> list[Cell]:
    """Those of which every row is there."""
    cells = []
    for reward, budget in dict.fromkeys((row.reward, row.budget) for row in rows):
        steps = next(row.config.steps for row in rows if (row.reward, row.budget) == (reward, budget))
        there = [row for row in rows if row.reward == reward and row.config.steps == steps]
        there = [row for row in there if row.rival is None or row.budget == budget]
        if all(row.name in manifests for row in there):
            gradient = run.recipe.rewards[reward].gradient
            whats = (there[0].spec, "judge")
            values = [{row.method: image_values([manifests[row.name]], what) for row in there} for what in whats]
            cells.append(Cell(reward, budget, gradient, choose(budget, steps, gradient).method, *values))
    return cells


def compared(cells: Sequence[Cell]) -> Report:
    """auto beside the best single method of each cell, and beside each that is always taken."""
    best = [max(cell.rewards, key=cell.gain) for cell in cells]
    others = {str(k): estimated(c.rewards[c.taken], c.rewards[best[k]]) for k, c in enumerate(cells) if c.taken != best[k]}
    judges = {str(k): estimated(c.judges[c.taken], c.judges[BASE]) for k, c in enumerate(cells)}
    apart, judged = (holm({k: one for k, one in found.items() if one}) for found in (others, judges))  # some have no judge
    told = [
        {
            "reward": cell.reward,
            "budget": cell.budget,
            "taken": cell.taken,
            "gain": cell.gain(cell.taken),
            "best": best[k],
            "most": cell.gain(best[k]),
            "apart": apart[str(k)]._asdict() if str(k) in apart else None,
            "judge": judged[str(k)]._asdict() if str(k) in judged else None,
        }
        for k, cell in enumerate(cells)
    ]
    below = [one for one in apart.values() if one.below]
    falls = [one for one in judged.values() if one.below]
    behind = mean([one["most"] - one["gain"] for one in told]) if told else 0.0
    where = f"below in {len(below)} of {len(told)} cells; the best itself in {len(told) - len(apart)}; on average"
    where += f" {number(behind, 2)} standard deviations of base behind the best of each cell"
    findings = [_finding(told, below, where), _finding(told, falls, f"fallen in {len(falls)} of {len(told)} cells")]
    texts = ("auto is nowhere below the best single method of its cost", "auto's judge is nowhere below base's")
    made = [claimed(text, "no such run", finding) for text, finding in zip(texts, findings, strict=True)]
    made = made if judged or not told else made[:1]
    return {"cells": told, "always": [row for kind in (True, False) for row in _always(cells, kind)], "claims": made}


def _finding(told: Sequence[Any], against: Sequence[Any], found: str) -> dict[str, Any] | None:
    return {"verdict": "fails" if against else "holds", "found": found} if told else None


def _always(cells: Sequence[Cell], gradient: bool) -> list[dict[str, Any]]:
    """auto beside each method that ran in all cells of a kind, were that one always taken, image by image."""
    of = [cell for cell in cells if cell.gradient == gradient]
    methods = [one for one in of[0].rewards if all(one in cell.rewards for cell in of)] if of else []

    def pooled(taken: Sequence[str]) -> Values:
        each = enumerate(zip(of, taken, strict=True))
        return {(k, *key[1:]): v / cell.spread for k, (cell, one) in each for key, v in cell.rewards[one].items()}

    auto = pooled([cell.taken for cell in of])
    found = {method: estimated(auto, pooled([method] * len(of))) for method in methods}
    apart = holm({method: one for method, one in found.items() if one})
    rows = [{"gradient": gradient, "method": "auto", "gain": mean([c.gain(c.taken) for c in of]), "apart": None}] if of else []
    return rows + [
        {"gradient": gradient, "method": method, "gain": mean([c.gain(method) for c in of]), "apart": apart[method]._asdict()}
        for method in sorted(methods, key=lambda one: -mean([c.gain(one) for c in of]))
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """The page."""
    heads = ("reward", "budget", "auto takes", "gain (sd of base)", "best single", "its gain", "auto - best", "judge - base")
    cells = [
        [
            *(one["reward"], one["budget"], one["taken"], number(one["gain"], 3), one["best"], number(one["most"], 3)),
            *(NONE if one["apart"] is None else shown(one["apart"], sign=True), shown(one["judge"], sign=True)),
        ]
        for one in report["cells"]
    ]
    always = [
        [
            "may be used" if one["gradient"] else "none",
            *(one["method"], number(one["gain"], 3)),
            NONE if one["apart"] is None else shown(one["apart"], sign=True),
        ]
        for one in report["always"]
    ]
    body = ["## auto beside the best single method of each cell", "", *table(heads, cells), *claims(report["claims"])]
    body += ["", "## Were one method always taken", ""]
    body += [*table(("gradient", "always", "mean gain (sd of base)", "auto - it, over all cells"), always), ""]
    return whole(report, body)
