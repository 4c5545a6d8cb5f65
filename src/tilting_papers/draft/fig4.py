"""Fig. 4 of DRaFT: K = 1, 5, 10, 30, 50, DRaFT-LV and ReFL on a preference reward, and whether it carries over.

``clip`` has HPSv2's part. Prompts that carry over: animals that training never names, and whole scenes. The reward that it
carries over to is the judge, which no reward reads.
"""

from __future__ import annotations

from functools import partial

from tilting_papers.draft.arms import HELD, TRAIN, Arm
from tilting_papers.draft.claims import higher, sooner
from tilting_papers.draft.k import ABLATION, CLAIMS, figures, table2
from tilting_papers.draft.looks import Variant
from tilting_papers.draft.results import BASE, Claim, Results, Study
from tilting_papers.draft.study import run_study
from tilting_papers.rows import SCENES

HALF = "draft-lv-half"


def halfway(results: Results) -> list[Variant]:
    """DRaFT-LV at the look nearest to half its steps, the paper's "5k steps"."""
    if not results.has("draft-lv"):
        return []
    steps = [point["step"] for point in results.points("draft-lv")]
    middle = min(steps, key=lambda step: abs(step - steps[-1] / 2))
    return [Variant(HALF, ((results.lora("draft-lv", middle), 1.0),))]


STUDY = Study(
    "draft-fig4", "how many steps carry gradient, and what carries over", "Fig. 4 and Table 2 of Clark et al. 2024 (HPSv2)",
    arms=(*ABLATION, Arm("draft-lv", "draft-lv", published="draft-lv"), Arm("refl", "refl", published="refl")),
    figures=figures, sets={"train": TRAIN, "held-out": HELD, "scenes": SCENES}, variants=halfway,
    published=("draft-table2", "HPSv2, average of four categories"),
    claims=(
        *CLAIMS,
        Claim("DRaFT-LV ends highest: above DRaFT-1", table2("draft-lv", "draft-1"), higher("draft-lv", "draft-1")),
        Claim("DRaFT-LV reaches DRaFT-1's last reward in at most two thirds of its steps", "about half of them",
              sooner("draft-lv", "draft-1")),
        Claim("DRaFT-1 ends above ReFL", f"slightly: {table2('draft-1', 'refl')}", higher("draft-1", "refl")),
        Claim("it carries over to animals that were not trained on (DRaFT-LV above base)", "transfers well across prompt sets",
              higher("draft-lv", BASE, where="held-out")),
        Claim("it carries over to scenes (DRaFT-LV above base)", "transfers well across prompt sets",
              higher("draft-lv", BASE, where="scenes")),
        Claim("it carries over to another reward: the judge rises on held-out prompts (DRaFT-LV above base)",
              f"fairly well, trained on PickScore and not at all: {table2('draft-lv-trained-on-pickscore', 'sd-1.4')}",
              higher("draft-lv", BASE, "judge", "held-out")),
    ),
    notes=(
        "Names carry the paper's K of 50; the column K is ours. draft-lv-half is draft-lv at the look nearest half its steps.",
    ),
)  # fmt: skip
run = partial(run_study, STUDY)
