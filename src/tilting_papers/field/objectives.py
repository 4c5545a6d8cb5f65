"""Every objective on one reward, within three minutes of a core each: reward and judge over both costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilting.objectives import OBJECTIVES
from tilting_papers.charts import chart, forest
from tilting_papers.draft.charts import curve, progress
from tilting_papers.draft.study import Results, Size, Study, Training, values_of
from tilting_papers.numbers import interval, verdict

MINUTES = 3.0
"""Of one core, that an arm may take, its looks included."""
MOST = 8
"""Curves in one chart."""
ARMS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "draft": (25, 4, {}),
    "draft-k": (65, 4, {}),
    "draft-lv": (55, 4, {}),
    "refl": (70, 4, {}),
    "alignprop": (40, 4, {}),
    "srpo": (60, 4, {}),
    "drtune": (50, 4, {}),
    "dpg": (10, 4, {}),
    "adjoint": (15, 4, {}),
    "ddpo": (12, 8, {}),
    "dpok": (8, 8, {}),
    "grpo": (12, 8, {"group_size": 4}),
    "mixgrpo": (30, 8, {"group_size": 4}),
    "grpo-fast": (35, 8, {"group_size": 4}),
    "grpo-guard": (12, 8, {"group_size": 4}),
    "flow-dppo": (12, 8, {"group_size": 4}),
    "pref-grpo": (12, 8, {"group_size": 4}),
    "rwr": (25, 8, {}),
    "raft": (30, 8, {"group_size": 4}),
    "dpo": (20, 8, {"group_size": 4}),
    "nft": (16, 8, {"group_size": 4}),
    "awm": (20, 8, {"group_size": 4}),
    "dgpo": (20, 8, {"group_size": 4}),
    "crd": (16, 8, {"group_size": 4}),
    "opd": (5, 4, {}),
}
"""By objective, training steps, images of one, and settings beside the objective's own: as many steps as three minutes hold."""


def gains(results: Results, what: str, where: str) -> dict[str, Any]:
    """The gain of every arm over its own look before training."""
    before = {name: values_of(results.points(name)[0]["sets"][where], what) for name in results.summaries}
    return {name: interval(results.values(name, what, where), base, seeded=True) for name, base in before.items()}


def which(results: Results) -> dict[str, Any]:
    """Which to use when: the arms whose interval lies above base, the largest gain first, by what they need of a reward."""
    looked = ((results.spec, results.first), (results.spec, "held-out"), ("judge", "held-out"))
    on_train, on_held, judged = (gains(results, what, where) for what, where in looked)

    def those(arms: list[str], gain: dict[str, Any], kind: str) -> str:
        found = [name for name in arms if gain[name] and verdict(gain[name]["low"], gain[name]["high"]) == kind]
        return ", ".join(sorted(found, key=lambda name: -gain[name]["mean"])) or "none"

    rows = []
    for reward, gradient in (("has a gradient", True), ("is a black box", False)):
        arms = [name for name in results.summaries if OBJECTIVES[name]().needs_gradient == gradient]
        told = [those(arms, on_train, "holds"), those(arms, on_held, "holds"), those(arms, judged, "fails")]
        rows += [[reward, *told]] if arms else []
    heads = ("the reward", "rise on train prompts", "rise on held-out prompts", "whose judge falls there")
    return {"Which to use when (by each arm's own 95 % interval)": {"heads": heads, "rows": rows}}


def figures(results: Results) -> list[str]:
    """Every arm's gain in reward and in the held-out judge; over both costs the reward of those that gain most; samples."""
    rewards, judged = gains(results, results.spec, results.first), gains(results, "judge", "held-out")
    order = sorted(rewards, key=lambda name: -rewards[name]["mean"])
    panels = {f"{Path(results.spec).name} - before, train prompts": {name: rewards[name] for name in order}}
    if all(judged.values()):
        panels["pocket-judge (log p) - before, held-out prompts"] = {name: judged[name] for name in order}
    curves = [curve(results, across, results.spec, results.first, order[:MOST]) for across in ("evaluations", "reward_calls")]
    drawn = [forest(panels, results.out / "gains.png"), chart(curves, results.out / "curves.png")]
    return [*drawn, progress(results, results.out / "progress.png")]


STUDY = Study(
    name="field-objectives",
    about="every objective on one reward, three minutes of a core each, over both costs",
    paper="our own",
    title="every objective within three minutes of a core",
    after="no table: the objectives at one learning rate here",
    runs=tuple(
        Training(name, name, settings, batch=batch, train_steps=steps, small=name in ("draft-k", "nft"))
        for name, (steps, batch, settings) in ARMS.items()
    ),
    size=Size(images=2, evaluations=3, prompts=6),
    seeds=3,
    between=1,
    extra=which,
    figures=figures,
    notes=(
        "T = 20. Every arm has as many training steps as three minutes of a core hold, its looks included.",
        "One learning rate and one clip for all: an objective that is tuned for itself would do better. An arm that is not in "
        "the table has not been run yet.",
    ),
)
