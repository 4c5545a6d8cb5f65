"""Fig. 29 of DRaFT: three ways against over-optimisation, by a reward held out of training.

LoRA scaling and early stopping are read off one run; the weight of |eps_θ - eps_base|² at the last step needs a run for each.
A front is the held-out judge over the trained reward, and one front is above another by

    gap = mean over the other's points of judge(front at the same reward) - judge(point)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from tilting_papers.draft.arms import Arm, Size
from tilting_papers.draft.claims import DRAWS, Test, falls
from tilting_papers.draft.looks import Variant, interval, values_of
from tilting_papers.draft.plots import Panel, chart, curve, name_of
from tilting_papers.draft.results import BASE, Claim, Results, Study
from tilting_papers.draft.study import run_study
from tilting_papers.page import number
from tilting_papers.verdicts import Finding, verdict

WEIGHTS = (1.0, 10.0, 100.0)
SCALES = (0.2, 0.4, 0.6, 0.8)
ARM = "draft-lv"
Front = list[tuple[float, float]]


def variants(results: Results) -> list[Variant]:
    """The scales, and the stops before the last."""
    found = [Variant(f"scale-{s:g}", ((results.lora(ARM), s),)) for s in SCALES if not results.small or s == 0.4]
    stops = [point["step"] for point in results.points(ARM)[1:-1]]
    return found + [Variant(f"stop-{step}", ((results.lora(ARM, step), 1.0),)) for step in stops]


def front_of(results: Results, kind: str) -> list[str]:
    """The rows of a way, from the base model to the whole run."""
    middle = [name for name in (*results.variants, *results.summaries) if name.startswith(kind)]
    if kind == "kl-":
        middle = sorted(middle, key=lambda name: -float(name.removeprefix(kind)))
    return [BASE, *middle, ARM]


WAYS = {"scale-": "LoRA scaling", "stop-": "early stopping", "kl-": "KL regularisation"}


def figures(results: Results) -> list[str]:
    """The judge over the reward, a curve for every way, and the runs' own curves."""
    panels = []
    for where in results.looks.sets:
        series = {}
        for kind, label in WAYS.items():
            dots = []
            for name in front_of(results, kind):
                across = interval(results.values(name, None, where))
                dots.append((across["mean"] if across else math.nan, interval(results.values(name, "judge", where))))
            series[label] = dots
        across = f"{name_of(results, results.spec)}, {where} prompts"
        panels.append(Panel(across, f"{name_of(results, 'judge')}, {where} prompts", series))
    runs = [curve(results, "step", what, "held-out") for what in (results.spec, "judge")]
    return [chart(panels, results.out / "fronts.png"), chart(runs, results.out / "curves.png")]


def at(front: Front, across: float) -> float | None:
    """The front's height over a place, linear between neighbours; None outside of it."""
    dots = sorted(front)
    for (x0, y0), (x1, y1) in pairwise(dots):
        if x0 <= across <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (across - x0) / (x1 - x0)
    return None


def gap(front: Front, other: Front) -> float | None:
    """Mean height of a front over the inner points of another; None where they share no place."""
    apart = [height - y for x, y in other[1:-1] if (height := at(front, x)) is not None]
    return sum(apart) / len(apart) if apart else None


def _by_prompt(results: Results, name: str, what: str, where: str) -> list[float]:
    values, means = values_of(results.seen(name)[where], what), {}
    for (prompt, _), value in values.items():
        means.setdefault(prompt, []).append(value)
    return [sum(v) / len(v) for v in means.values()]


def above(way: str, other: str, where: str = "held-out") -> Test:
    """That one way's front lies above another's, prompts resampled."""

    def test(results: Results) -> Finding | None:
        import torch

        names = {kind: front_of(results, kind) for kind in (way, other)}
        if any(len(found) < 3 for found in names.values()):
            return None
        held = {name: [_by_prompt(results, name, what, where) for what in (results.spec, "judge")]
                for found in names.values() for name in found}  # fmt: skip
        count = len(held[BASE][0])

        def measured(rows: Sequence[int]) -> float | None:
            def front(kind: str) -> Front:
                parts = [[sum(v[i] for i in rows) / len(rows) for v in held[name]] for name in names[kind]]
                return [(reward, judge) for reward, judge in parts]

            return gap(front(way), front(other))

        picks = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0)).tolist()
        mean, drawn = measured(range(count)), sorted(g for rows in picks if (g := measured(rows)) is not None)
        if mean is None or len(drawn) < DRAWS / 2:
            return {"verdict": "undecided", "found": "the two fronts share no reward"}
        low, high = drawn[int(0.025 * (len(drawn) - 1))], drawn[math.ceil(0.975 * (len(drawn) - 1))]
        words = f"{WAYS[way]} over {WAYS[other]}: {number(mean, 3)} [{number(low, 3)}, {number(high, 3)}] nats of judge"
        return {"verdict": verdict(low, high), "found": words, "mean": mean, "low": low, "high": high}

    return test


STUDY = Study(
    "draft-fig29", "over-optimisation: LoRA scaling, early stopping, KL",
    "Fig. 29 of Clark et al. 2024 (HPSv2 against PickScore)",
    arms=(
        Arm(ARM, "draft-lv"),
        *(Arm(f"kl-{w:g}", "draft-lv", {"eps_kl": w}, small=w == WEIGHTS[1]) for w in WEIGHTS),
    ),
    figures=figures, variants=variants, size=Size(train_steps=200, looks=8),
    claims=(
        Claim("at equal reward, LoRA scaling keeps a higher judge than early stopping", "LoRA scaling is more effective",
              above("scale-", "stop-")),
        Claim("at equal reward, LoRA scaling keeps a higher judge than KL", "LoRA scaling is more effective",
              above("scale-", "kl-")),
        Claim("there is something to prevent: the whole run's judge is below the base model's",
              "fine-tuning overfits the reward", falls(ARM, "judge", "held-out")),
    ),
    notes=(
        "stop-S is the run at step S; kl-W has the weight W on the mean square of the last step's eps_θ - eps_base.",
        "The noise is that of the same looks for every point, so that fronts differ by the LoRA alone.",
    ),
)  # fmt: skip
run = partial(run_study, STUDY)
