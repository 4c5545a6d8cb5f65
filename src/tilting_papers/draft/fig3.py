"""Fig. 3 of DRaFT: sample efficiency. Reward against generated images, training steps, reward queries and seconds.

``style``, log p(noto | image), has the part of the aesthetic score: a reward of the image alone, on prompts that name no style.
DDPO has twenty times the images of a step's four in the paper; here as many reward queries as the budget allows.
"""

from __future__ import annotations

from tilting_papers.charts import chart
from tilting_papers.draft.charts import curve, progress
from tilting_papers.draft.claims import behind, dearer, faster, higher, sooner
from tilting_papers.draft.study import DRAFT, STYLE, Claim, Results, Size, Study, Training
from tilting_papers.published import published
from tilting_papers.recipe import later

PAPER = published("draft-fig3")
FREE = 1000.0
"""A norm that no gradient here reaches: nothing is clipped."""


def figures(results: Results) -> list[str]:
    """The curves over four costs, and samples as training goes on."""
    panels = [curve(results, x, results.spec, results.first) for x in ("images", "step", "reward_calls", "seconds")]
    for i in (0, 2, 3):
        series = {name: [dot for dot in dots if dot[0] > 0] for name, dots in panels[i].series.items()}
        panels[i] = panels[i]._replace(log="x", series=series)
    return [chart(panels, results.out / "efficiency.png"), progress(results, results.out / "progress.png")]


STUDY = Study(
    name="draft-fig3",
    about="sample efficiency: DRaFT-50, -10, -1, -LV, ReFL, DDPO",
    paper=f"{DRAFT}, Fig. 3",
    title="sample efficiency of fine-tuning",
    after="Fig. 3 of Clark et al. 2024 (aesthetic score)",
    runs=(
        Training("draft-1", "draft-k", k=1),
        Training("draft-lv", "draft-lv"),
        Training("refl", "refl"),
        Training("draft-10", "draft-k", k=10),
        Training("draft-50", "draft"),
        Training("draft-1-free", "draft-k", k=1, clip=FREE),
        Training("draft-lv-free", "draft-lv", clip=FREE, small=False),
        Training("ddpo", "ddpo", lr=3e-4, batch=16),
    ),
    size=Size(train_steps=60, images=2, evaluations=12, prompts=12),
    seeds=3,
    between=1,
    extra=later("draft.variance:measure"),
    figures=figures,
    reward=("style",),
    units=STYLE,
    claims=(
        Claim("DRaFT-LV learns faster than DRaFT-1", "about twice as fast", faster("draft-lv", "draft-1")),
        Claim(
            "DRaFT-LV reaches half of DRaFT-1's gain in at most two thirds of its steps",
            "about half of them",
            sooner("draft-lv", "draft-1"),
        ),
        Claim(
            "DRaFT-LV learns faster than DRaFT-1 where nothing is clipped",
            "no such run",
            faster("draft-lv-free", "draft-1-free"),
        ),
        Claim("DRaFT-1 learns faster where nothing is clipped", "no such run", faster("draft-1-free", "draft-1")),
        Claim("DRaFT-LV learns faster than ReFL", f"{PAPER['draft_lv_vs_refl_speed']} faster", faster("draft-lv", "refl")),
        Claim(
            "DRaFT-LV reaches half of ReFL's gain in at most two thirds of its steps",
            f"learns {PAPER['draft_lv_vs_refl_speed']} faster",
            sooner("draft-lv", "refl"),
        ),
        Claim(
            "truncating to one step learns faster: DRaFT-1 than DRaFT-50",
            "a single step substantially improves sample efficiency",
            faster("draft-1", "draft-50"),
        ),
        Claim(
            "truncating to ten steps learns faster: DRaFT-10 than DRaFT-50",
            "truncating substantially improves sample efficiency",
            faster("draft-10", "draft-50"),
        ),
        Claim(
            "DRaFT-1 reaches half of DRaFT-50's gain in at most two thirds of its steps",
            "a single step substantially improves sample efficiency",
            sooner("draft-1", "draft-50"),
        ),
        Claim(
            "DDPO gains less than DRaFT-1 from at least twice its reward queries",
            f"{PAPER['draft_vs_ddpo_speed']} faster; DDPO has {PAPER['ddpo_reward_after_50k_queries']} after 50,000 queries",
            behind("ddpo", "draft-1", 2.0),
        ),
        Claim(
            "a step of DRaFT-LV costs at most 1.2 times that of DRaFT-1",
            f"{PAPER['draft_lv_extra_compute']} more",
            dearer("draft-lv", "draft-1", 1.2),
        ),
        Claim("DRaFT-1 ends above ReFL", "similar to ReFL", higher("draft-1", "refl")),
    ),
    notes=(
        "DDPO has batches of 16 and 960 reward queries in all, eta 1 and a rate of 3e-4, and is looked at in that sampler; the "
        "others have batches of 4, 240 queries and eta 0. Seconds compare only where all arms were trained with nothing else "
        "running.",
        "A reward query is an image scored; DRaFT-LV scores three per image, which costs 1.26 times DRaFT-1's evaluations at "
        "T = 20 and 1.11 times at the paper's 50. The names carry the paper's K of 50.",
        "All arms but those called free are clipped to a gradient norm of 1. Where that binds at nearly every step, arms "
        "differ in the direction of their steps alone. Intervals are over training seeds and prompts.",
    ),
)
