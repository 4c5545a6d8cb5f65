"""Fig. 34 of DRaFT: deterministic policy gradients (C.2) and DRaFT-LV with a single reward gradient (C.1) beside the rest.

DPG learns from every step of the chain, one forward and backward each; its critic is the reward with a LoRA of its own.
"""

from __future__ import annotations

from functools import partial

from tilting_papers.draft.arms import Arm
from tilting_papers.draft.claims import higher
from tilting_papers.draft.plots import chart, curve, progress
from tilting_papers.draft.results import Claim, Results, Study
from tilting_papers.draft.study import run_study


def figures(results: Results) -> list[str]:
    """Training curves over steps and reward queries, and the held-out judge."""
    panels = [curve(results, x, results.spec, results.first) for x in ("step", "evaluations")]
    return [
        chart([*panels, curve(results, "step", "judge", "held-out")], results.out / "curves.png"),
        progress(results, results.out / "progress.png"),
    ]


STUDY = Study(
    "draft-fig34", "DPG and single-reward DRaFT-LV", "Fig. 34 of Clark et al. 2024 (HPSv2)",
    arms=(
        Arm("draft-1", "draft-k", k=1), Arm("draft-lv", "draft-lv"), Arm("draft-lv-single", "draft-lv", {"single": True}),
        Arm("draft-50", "draft"), Arm("dpg", "dpg"), Arm("dpg-last-20", "dpg", {"last": 8}, small=False),
    ),
    figures=figures,
    claims=(
        Claim("DPG ends above DRaFT-50", "DPG outperforms vanilla DRaFT", higher("dpg", "draft-50")),
        Claim("DPG ends below DRaFT-1", "but not the more efficient variants", higher("draft-1", "dpg")),
        Claim("DPG ends below DRaFT-LV", "but not the more efficient variants", higher("draft-lv", "dpg")),
        Claim("a single reward gradient does not learn as well: DRaFT-LV ends above it", "unstable, does not learn effectively",
              higher("draft-lv", "draft-lv-single")),
        Claim("it is worse even than DRaFT-1", "unstable, does not learn effectively", higher("draft-1", "draft-lv-single")),
    ),
    notes=(
        "dpg-last-20 learns from the last 8 steps alone, 20 of the paper's 50: the remedy that C.2 names and does not try.",
        "A critic's calls are not counted as reward queries; the error of DPG's critic stands in its metrics.jsonl.",
    ),
)  # fmt: skip
run = partial(run_study, STUDY)
