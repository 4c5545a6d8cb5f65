"""Every objective on one reward, within six minutes of a core each: reward and judge over both costs."""

from __future__ import annotations

from typing import Any

from tilting_papers.charts import chart
from tilting_papers.draft.charts import curve, progress
from tilting_papers.draft.study import Results, Size, Study, Training

MINUTES = 6.0
"""Of one core, that an arm may take, its looks included."""
ARMS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "draft": (50, 4, {}),
    "draft-k": (130, 4, {}),
    "draft-lv": (110, 4, {}),
    "refl": (140, 4, {}),
    "alignprop": (80, 4, {}),
    "srpo": (120, 4, {}),
    "drtune": (100, 4, {}),
    "dpg": (20, 4, {}),
    "adjoint": (30, 4, {}),
    "ddpo": (24, 8, {}),
    "dpok": (16, 8, {}),
    "grpo": (24, 8, {"group_size": 4}),
    "mixgrpo": (60, 8, {"group_size": 4}),
    "grpo-fast": (70, 8, {"group_size": 4}),
    "grpo-guard": (24, 8, {"group_size": 4}),
    "flow-dppo": (24, 8, {"group_size": 4}),
    "pref-grpo": (24, 8, {"group_size": 4}),
    "rwr": (50, 8, {}),
    "raft": (60, 8, {"group_size": 4}),
    "dpo": (40, 8, {"group_size": 4}),
    "nft": (32, 8, {"group_size": 4}),
    "awm": (40, 8, {"group_size": 4}),
    "dgpo": (40, 8, {"group_size": 4}),
    "crd": (32, 8, {"group_size": 4}),
    "opd": (9, 4, {}),
}
"""By objective, training steps, images of one, and settings beside the objective's own: as many steps as six minutes hold."""


def figures(results: Results) -> list[str]:
    """Reward over both costs, the held-out judge over evaluations, and samples."""
    panels = [curve(results, across, results.spec, results.first) for across in ("evaluations", "reward_calls")]
    judge = curve(results, "evaluations", "judge", "held-out")
    return [chart([*panels, judge], results.out / "curves.png"), progress(results, results.out / "progress.png")]


STUDY = Study(
    name="field-objectives",
    about="every objective on one reward, six minutes of a core each, over both costs",
    paper="our own",
    title="every objective within six minutes of a core",
    after="no table: the objectives at one learning rate here",
    runs=tuple(
        Training(name, name, settings, batch=batch, train_steps=steps, small=name in ("draft-k", "nft"))
        for name, (steps, batch, settings) in ARMS.items()
    ),
    size=Size(images=2, evaluations=3, prompts=6),
    seeds=3,
    between=1,
    figures=figures,
    notes=(
        "T = 20. Every arm has as many training steps as six minutes of a core hold, its looks included; three training seeds.",
        "One learning rate and one clip for all: an objective that is tuned for itself would do better. An arm that is not in "
        "the table has not been run yet.",
    ),
)
