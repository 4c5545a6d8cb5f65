"""Figs 8 and 25 of DRaFT: the gradient of DRaFT-K against K, its norm and its angles to the full one and to DRaFT-1's.

    g_K = ∇_θ mean_i r(x_0^i), gradient in the last K steps only;   angle(g, h) = arccos(g · h / |g| |h|)

On the same batches for every K, for the LoRA as it begins (B = 0, so only B has a gradient) and after training by DRaFT-1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from tilting_papers.draft.arms import Arm, of_fifty
from tilting_papers.draft.claims import Test
from tilting_papers.draft.looks import interval
from tilting_papers.draft.plots import Panel, chart
from tilting_papers.draft.results import Claim, Results, Study
from tilting_papers.draft.study import run_study
from tilting_papers.folder import kept
from tilting_papers.page import shown
from tilting_papers.verdicts import Finding

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.training.batches import Batches
    from tilting.training.trainer import Trainer

FIFTY = (1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50)
BATCHES, SMALL_BATCHES = 12, 2
STATES = ("initial", "trained")
MEASURES = {
    "norm": "gradient norm", "to_full": "angle to the full gradient (degrees)", "to_first": "angle to DRaFT-1's (degrees)",
}  # fmt: skip


def gradients(trainer: Trainer[Batches], ks: list[int], step: int) -> dict[int, Tensor]:
    """By K, the gradient of DRaFT-K's loss on the batch of a training step, flat, float64; the weights stay as they are."""
    import torch

    from tilting.objectives import draft_k

    found, parameters = {}, list(trainer.state.parameters.values())
    for k in ks:
        for p in parameters:
            p.grad = None
        with torch.enable_grad():
            for loss in draft_k(k)(trainer.batches(step, {})):
                loss.value.backward()
        found[k] = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in parameters])
    for p in parameters:
        p.grad = None
    return found


def angle(a: Tensor, b: Tensor) -> float:
    """Between two vectors, in degrees; 90 if one of them is zero. By tan(φ/2), for arccos is blind to small angles."""
    if not a.norm() or not b.norm():
        return 90.0
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2((a - b).norm().item(), (a + b).norm().item()))


def measured(trainer: Trainer[Batches], ks: list[int], batches: int, since: int = 10_000) -> list[dict[str, list[float]]]:
    """Per batch, by measure, a number for every K. Batches are those of training steps that no run reaches."""
    found = []
    for i in range(batches):
        g = gradients(trainer, ks, since + i)
        full, first = g[ks[-1]], g[ks[0]]
        found.append({
            "norm": [g[k].norm().item() for k in ks], "to_full": [angle(g[k], full) for k in ks],
            "to_first": [angle(g[k], first) for k in ks],
        })  # fmt: skip
    return found


def measure(results: Results) -> dict[str, Any]:
    """Both states' tables, each kept in a file of the folder."""
    from tilting.models.lora import read_lora
    from tilting.models.lora_file import lora_file
    from tilting.runs.files import digest
    from tilting.training.processes import Engine
    from tilting.training.run import trainer_of

    config = results.configs["draft-1"]
    ks = list(dict.fromkeys(of_fifty(k, results.size.steps) for k in FIFTY))
    batches = SMALL_BATCHES if results.small else BATCHES
    tables = {}
    for state in STATES:
        lora = results.lora("draft-1", 0 if state == "initial" else None)
        made = {"lora": digest(lora_file(lora)), "ks": ks, "batches": batches, "batch": config.batch_size, "seed": config.seed}

        def make(lora=lora) -> Any:
            parts = results.shelf.parts(config)._replace(start=read_lora(lora))
            return measured(trainer_of(config, parts, Engine()), ks, batches)

        rows = kept(results.out / f"gradients-{state}.json", made, make)
        cells = {what: [interval({("", i): row[what][j] for i, row in enumerate(rows)}) for j in range(len(ks))]
                 for what in MEASURES}  # fmt: skip
        tables[f"gradients of the {state} LoRA, {batches} batches of {config.batch_size}"] = {
            "heads": ["K", *MEASURES.values()], "state": state, "ks": ks, "cells": cells, "batches": rows,
            "rows": [[k, *(shown(cells[what][j]) for what in MEASURES)] for j, k in enumerate(ks)],
        }  # fmt: skip
    return tables


def _table(results: Results, state: str) -> dict[str, Any]:
    return next(part for part in results.extra.values() if part["state"] == state)


def figures(results: Results) -> list[str]:
    """Norm and angles over K, a curve for each state."""
    panels = []
    for what, name in MEASURES.items():
        series = {f"{part['state']} LoRA": list(zip(part["ks"], part["cells"][what], strict=True)) for part in
                  results.extra.values()}  # fmt: skip
        line = None if what == "norm" else (90.0, "orthogonal")
        panels.append(Panel(f"K of T = {results.size.steps}", name, series, "y" if what == "norm" else "", line))
    return [chart(panels, results.out / "gradients.png")]


def grows(state: str, times: float) -> Test:
    """That the full gradient is so many times DRaFT-1's in norm."""

    def test(results: Results) -> Finding | None:
        part = _table(results, state)
        ratios = [math.log(row["norm"][-1] / row["norm"][0]) for row in part["batches"] if row["norm"][0] > 0 < row["norm"][-1]]
        found = interval({("", i): value for i, value in enumerate(ratios)})
        if found is None:
            return {"verdict": "undecided", "found": "a gradient is zero"}
        low, mean, high = (math.exp(found[key]) for key in ("low", "mean", "high"))
        kind = "holds" if low > times else "fails" if high < times else "undecided"
        return {"verdict": kind, "found": f"{mean:.3g} times [{low:.3g}, {high:.3g}] at K = {part['ks'][-1]}", "ratio": mean}

    return test


def orthogonal(state: str) -> Test:
    """That the full gradient stands at more than 75 degrees to DRaFT-1's."""

    def test(results: Results) -> Finding | None:
        part = _table(results, state)
        last = part["cells"]["to_first"][-1]
        kind = "holds" if last["low"] > 75 else "fails" if last["high"] < 75 else "undecided"
        return {"verdict": kind, "found": f"{shown(last)} degrees at K = {part['ks'][-1]}", "angle": last}

    return test


STUDY = Study(
    "draft-fig8", "gradients against the number of steps that carry them", "Figs 8 and 25 of Clark et al. 2024",
    arms=(Arm("draft-1", "draft-k", k=1),), figures=figures, extra=measure,
    claims=tuple(
        claim for state in STATES for claim in (
            Claim(f"gradients grow with K ({state} LoRA): the full one has more than twice DRaFT-1's norm",
                  "gradients explode as K increases (a figure without printed values)", grows(state, 2.0)),
            Claim(f"the full gradient is nearly orthogonal to DRaFT-1's ({state} LoRA): at more than 75 degrees",
                  "nearly orthogonal for K above 30 of 50", orthogonal(state)),
        )
    ),
    notes=(
        "Angles are between gradients of one batch, with the same prompts and noise, and then averaged over batches: they are "
        "not the angles that two different batches would have. Measuring them is about three times the work of the training.",
    ),
)  # fmt: skip
run = partial(run_study, STUDY)
