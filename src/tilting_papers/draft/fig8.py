"""Figs 8 and 25 of DRaFT: the gradient of DRaFT-K against K, its norm and its angles to the full one and to DRaFT-1's.

    g_K = ∇_θ mean_i r(x_0^i), gradient in the last K steps only;   angle(g, h) = arccos(g · h / |g| |h|)

On the same batches for every K, for the LoRA as it begins (B = 0, so only B has a gradient) and after training by DRaFT-1.
"""

from __future__ import annotations

import math
from typing import Any

from tilting_papers.charts import Panel, chart
from tilting_papers.draft.claims import Test
from tilting_papers.draft.study import DRAFT, Claim, Results, Size, Study, Training
from tilting_papers.numbers import Finding, interval, verdict
from tilting_papers.page import number, shown
from tilting_papers.recipe import later

FIFTY = (1, 2, 5, 10, 20, 30, 40, 50)
STATES = ("initial", "trained")
MEASURES = {
    "norm": "gradient norm",
    "to_full": "angle to the full gradient (degrees)",
    "to_first": "angle to DRaFT-1's (degrees)",
}


def _table(results: Results, state: str) -> dict[str, Any] | None:
    return next((part for part in results.extra.values() if part["state"] == state), None)


def figures(results: Results) -> list[str]:
    """Norm and angles over K, a curve for each state."""
    panels, tables = [], results.extra.values()
    for what, name in MEASURES.items():
        series = {f"{part['state']} LoRA": list(zip(part["ks"], part["cells"][what], strict=True)) for part in tables}
        log, line = ("y", None) if what == "norm" else ("", (90.0, "orthogonal"))
        panels.append(Panel(f"K of T = {results.size.steps}", name, series, log, line))
    return [chart(panels, results.out / "gradients.png")] if tables else []


def grows(state: str, times: float) -> Test:
    """That the full gradient is so many times DRaFT-1's in norm."""

    def test(results: Results) -> Finding | None:
        part = _table(results, state)
        if part is None:
            return None
        rows = [(seed, row["norm"]) for seed, row in zip(part["seeds"], part["batches"], strict=True)]
        ratios = {(s, str(i), 0): math.log(n[-1] / n[0]) for i, (s, n) in enumerate(rows) if n[0] > 0 < n[-1]}
        logs = interval(ratios, seeded=True)
        if logs is None:
            return {"verdict": "undecided", "found": "a gradient is zero"}
        mean, bounds = math.exp(logs["mean"]), [None if logs[key] is None else math.exp(logs[key]) for key in ("low", "high")]
        low, high = bounds
        words = f"{mean:.3g} times [{number(low, 3)}, {number(high, 3)}] at K = {part['ks'][-1]}"
        return {"verdict": verdict(low, high, times), "found": words, "ratio": mean}

    return test


def orthogonal(state: str) -> Test:
    """That the full gradient stands at more than 75 degrees to DRaFT-1's."""

    def test(results: Results) -> Finding | None:
        part = _table(results, state)
        if part is None:
            return None
        last = part["cells"]["to_first"][-1]
        kind = verdict(last["low"], last["high"], 75)
        return {"verdict": kind, "found": f"{shown(last)} degrees at K = {part['ks'][-1]}", "angle": last}

    return test


def _claims(state: str) -> tuple[Claim, Claim]:
    return (
        Claim(
            f"gradients grow with K ({state} LoRA): the full one has more than twice DRaFT-1's norm",
            "gradients explode as K increases (a figure without printed values)",
            grows(state, 2.0),
        ),
        Claim(
            f"the full gradient is nearly orthogonal to DRaFT-1's ({state} LoRA): at more than 75 degrees",
            "nearly orthogonal for K above 30 of 50",
            orthogonal(state),
        ),
    )


STUDY = Study(
    name="draft-fig8",
    about="gradient norms and angles against the steps that carry gradient",
    paper=f"{DRAFT}, Figs 8 and 25",
    title="gradients against the number of steps that carry them",
    after="Figs 8 and 25 of Clark et al. 2024",
    runs=(Training("draft-1", "draft-k", k=1),),
    size=Size(steps=50),
    seeds=3,
    figures=figures,
    extra=later("draft.gradients:measure"),
    claims=tuple(claim for state in STATES for claim in _claims(state)),
    notes=(
        "Angles are between gradients of one batch, with the same prompts and noise, and then averaged over batches: they are "
        "not the angles that two different batches would have. T is the paper's 50. Intervals are over training seeds and "
        "batches; measuring them is about twice the work of the training.",
    ),
)
