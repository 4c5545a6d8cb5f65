"""Fig. 29 of DRaFT: three ways against over-optimisation, by a reward held out of training.

LoRA scaling and early stopping are read off one run; the weight of |eps_θ - eps_base|² at the last step needs a run for each.
A front is the held-out judge over the trained reward, and one front is above another by

    gap = mean over the other's points of judge(front at the same reward) - judge(point)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from tilting.metrics.statistics import jackknife
from tilting_papers.charts import Panel, chart
from tilting_papers.draft.charts import curve, name_of
from tilting_papers.draft.claims import Test, falls
from tilting_papers.draft.study import BASE, DRAFT, Claim, Results, Size, Study, Training, Variant
from tilting_papers.numbers import Finding, by_prompt, interval, mean, verdict
from tilting_papers.page import number

WEIGHTS = (1.0, 10.0, 100.0)
SCALES = (0.2, 0.4, 0.6, 0.8)
RUN = "draft-lv"
Front = list[tuple[float, float]]


def variants(results: Results) -> list[Variant]:
    """The scales, and the stops before the last."""
    scales = [Variant(f"scale-{s:g}", ((results.lora(RUN), s),)) for s in SCALES if not results.small or s == 0.4]
    stops = [point["step"] for point in results.points(RUN)[1:-1]]
    return scales + [Variant(f"stop-{step}", ((results.lora(RUN, step), 1.0),)) for step in stops]


def front_of(results: Results, kind: str) -> list[str]:
    """The rows of a way, from the base model to the whole run."""
    middle = [name for name in (*results.variants, *results.summaries) if name.startswith(kind)]
    if kind == "kl-":
        middle = sorted(middle, key=lambda name: -float(name.removeprefix(kind)))
    return [BASE, *middle, RUN]


WAYS = {"scale-": "LoRA scaling", "stop-": "early stopping", "kl-": "KL regularisation"}


def figures(results: Results) -> list[str]:
    """The judge over the reward, a curve for every way, and the runs' own curves."""
    panels = []
    for where in results.protocol.sets:
        series = {}
        for kind, label in WAYS.items():
            rewards = [interval(results.values(name, None, where)) for name in front_of(results, kind)]
            judges = [interval(results.values(name, "judge", where)) for name in front_of(results, kind)]
            series[label] = [(reward["mean"] if reward else math.nan, y) for reward, y in zip(rewards, judges, strict=True)]
        panels.append(Panel(name_of(results, results.spec, where), name_of(results, "judge", where), series))
    runs = [curve(results, "step", what, "held-out") for what in (results.spec, "judge")]
    return [chart(panels, results.out / "fronts.png"), chart(runs, results.out / "curves.png")]


def at(front: Front, across: float) -> float | None:
    """The front's height over a place, linear between neighbours; None outside of it."""
    for (x0, y0), (x1, y1) in pairwise(sorted(front)):
        if x0 <= across <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (across - x0) / (x1 - x0)
    return None


def gap(front: Front, other: Front) -> float | None:
    """Mean height of a front over the inner points of another; None where they share no place."""
    apart = [height - y for x, y in other[1:-1] if (height := at(front, x)) is not None]
    return mean(apart) if apart else None


def above(way: str, other: str, where: str = "held-out") -> Test:
    """That one way's front lies above another's, with a t interval: each prompt is left out in turn."""

    def test(results: Results) -> Finding | None:
        names = {kind: front_of(results, kind) for kind in (way, other)}
        if any(len(rows) < 3 for rows in names.values()):
            return None
        rows = {name for rows in names.values() for name in rows}
        prompts = {name: [by_prompt(results.values(name, what, where)) for what in (None, "judge")] for name in rows}

        def front(kind: str, picked: Sequence[int]) -> Front:
            def point(name: str) -> tuple[float, float]:
                reward, judge = (mean([values[i] for i in picked]) for values in prompts[name])
                return reward, judge

            return [point(name) for name in names[kind]]

        def measured(picked: Sequence[int]) -> float:
            apart = gap(front(way, picked), front(other, picked))
            return math.nan if apart is None else apart

        found = jackknife(measured, len(prompts[BASE][0]))
        if found is None:
            return {"verdict": "undecided", "found": "the two fronts share no reward"}
        whole, low, high = found.interval()
        words = f"{WAYS[way]} over {WAYS[other]}: {number(whole, 3)} [{number(low, 3)}, {number(high, 3)}] nats of judge"
        return {"verdict": verdict(low, high), "found": words, "mean": whole, "low": low, "high": high}

    return test


STUDY = Study(
    name="draft-fig29",
    about="over-optimisation: LoRA scaling, early stopping, KL, by a held-out reward",
    paper=f"{DRAFT}, Fig. 29",
    title="over-optimisation: LoRA scaling, early stopping, KL",
    after="Fig. 29 of Clark et al. 2024 (HPSv2 against PickScore)",
    runs=(
        Training(RUN, "draft-lv"),
        *(Training(f"kl-{w:g}", "draft-lv", {"eps_kl": w}, small=w == WEIGHTS[1]) for w in WEIGHTS),
    ),
    figures=figures,
    variants=variants,
    size=Size(train_steps=200, evaluations=8),
    asks=("reward", "prompts", "seeds", "steps"),
    claims=(
        *(
            Claim(
                f"at equal reward, LoRA scaling keeps a higher judge than {other}",
                "LoRA scaling is more effective",
                above("scale-", kind),
            )
            for other, kind in (("early stopping", "stop-"), ("KL", "kl-"))
        ),
        Claim(
            "there is something to prevent: the whole run's judge is below the base model's",
            "fine-tuning overfits the reward",
            falls(RUN, "judge", "held-out"),
        ),
    ),
    notes=(
        "stop-S is the run at step S; kl-W has the weight W on the mean square of the last step's eps_θ - eps_base.",
        "The noise is that of the same looks for every point, so that fronts differ by the LoRA alone.",
    ),
)
