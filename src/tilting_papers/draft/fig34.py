"""Fig. 34 of DRaFT: deterministic policy gradients (C.2) and DRaFT-LV with a single reward gradient (C.1) beside the rest.

DPG learns from every step of the chain, one forward and backward each; its critic is the reward with a LoRA of its own.
"""

from __future__ import annotations

from tilting_papers.charts import chart
from tilting_papers.draft.charts import curve, progress
from tilting_papers.draft.claims import higher
from tilting_papers.draft.study import DRAFT, Claim, Results, Study, Training


def figures(results: Results) -> list[str]:
    """Training curves over steps and reward queries, and the held-out judge."""
    panels = [curve(results, x, results.spec, results.first) for x in ("step", "evaluations")]
    curves = chart([*panels, curve(results, "step", "judge", "held-out")], results.out / "curves.png")
    return [curves, progress(results, results.out / "progress.png")]


STUDY = Study(
    name="draft-fig34",
    about="DPG and single-reward DRaFT-LV",
    paper=f"{DRAFT}, Fig. 34",
    after="Fig. 34 of Clark et al. 2024 (HPSv2)",
    runs=(
        Training("draft-1", "draft-k", k=1),
        Training("draft-lv", "draft-lv"),
        Training("draft-lv-single", "draft-lv", {"single": True}),
        Training("draft-50", "draft"),
        Training("dpg", "dpg"),
        Training("dpg-last-20", "dpg", {"last": 8}, small=False),
    ),
    figures=figures,
    claims=(
        Claim("DPG ends above DRaFT-50", "DPG outperforms vanilla DRaFT", higher("dpg", "draft-50")),
        Claim("DPG ends below DRaFT-1", "but not the more efficient variants", higher("draft-1", "dpg")),
        Claim("DPG ends below DRaFT-LV", "but not the more efficient variants", higher("draft-lv", "dpg")),
        Claim(
            "a single reward gradient does not learn as well: DRaFT-LV ends above it",
            "unstable, does not learn effectively",
            higher("draft-lv", "draft-lv-single"),
        ),
        Claim("it is worse even than DRaFT-1", "unstable, does not learn effectively", higher("draft-1", "draft-lv-single")),
    ),
    notes=(
        "dpg-last-20 learns from the last 8 steps alone, 20 of the paper's 50: the remedy that C.2 names and does not try.",
        "A critic's calls are not counted as reward queries; the error of DPG's critic stands in its metrics.jsonl.",
    ),
)
