"""Fig. 3 of DRaFT: sample efficiency. Reward against generated images, training steps, reward queries and seconds.

``style``, log p(noto | image), has the part of the aesthetic score: a reward of the image alone, on prompts that name no style.
DDPO has twenty times the images of a step's four in the paper; here as many reward queries as the budget allows.
"""

from __future__ import annotations

from functools import partial

from tilting_papers.draft.arms import Arm
from tilting_papers.draft.claims import behind, dearer, higher, sooner
from tilting_papers.draft.plots import chart, curve, progress
from tilting_papers.draft.results import Claim, Results, Study
from tilting_papers.draft.study import run_study
from tilting_papers.published import published

PAPER = published("draft-fig3")
EFFICIENCY = (
    Arm("draft-1", "draft-k", k=1),
    Arm("draft-lv", "draft-lv"),
    Arm("refl", "refl"),
    Arm("draft-10", "draft-k", k=10),
    Arm("draft-50", "draft"),
)
DDPO = Arm("ddpo", "ddpo", lr=3e-4, batch=16)


def figures(results: Results) -> list[str]:
    """The curves over four costs, and samples as training goes on."""
    panels = [curve(results, x, results.spec, results.first) for x in ("images", "step", "reward_calls", "seconds")]
    panels = [panel._replace(log="x") if panel.across != "training steps" else panel for panel in panels]
    panels = [p._replace(series={k: [d for d in ds if d[0] > 0 or not p.log] for k, ds in p.series.items()}) for p in panels]
    return [chart(panels, results.out / "efficiency.png"), progress(results, results.out / "progress.png")]


STUDY = Study(
    "draft-fig3", "sample efficiency of fine-tuning", "Fig. 3 of Clark et al. 2024 (aesthetic score)",
    arms=(*EFFICIENCY, DDPO), figures=figures, reward=("style",), units={"style": "log p of noto, nats"},
    claims=(
        Claim("DRaFT-LV reaches DRaFT-1's last reward in at most two thirds of its steps", "about half of them",
              sooner("draft-lv", "draft-1")),
        Claim("DRaFT-LV reaches ReFL's last reward in at most two thirds of its steps",
              f"learns {PAPER['draft_lv_vs_refl_speed']} faster", sooner("draft-lv", "refl")),
        Claim("truncating to one step learns faster: DRaFT-1 reaches DRaFT-50's last reward in at most two thirds of its steps",
              "a single step substantially improves sample efficiency", sooner("draft-1", "draft-50")),
        Claim("DDPO gains less than DRaFT-1 from at least twice its reward queries",
              f"{PAPER['draft_vs_ddpo_speed']} faster; DDPO has {PAPER['ddpo_reward_after_50k_queries']} after 50,000 queries",
              behind("ddpo", "draft-1", 2.0)),
        Claim("a step of DRaFT-LV takes at most 1.2 times that of DRaFT-1", f"{PAPER['draft_lv_extra_compute']} more",
              dearer("draft-lv", "draft-1", 1.2)),
        Claim("DRaFT-1 ends above ReFL", "similar to ReFL", higher("draft-1", "refl")),
    ),
    notes=(
        "DDPO has batches of 16 and 1,600 reward queries in all, eta 1 and a rate of 3e-4, and is looked at in that sampler; "
        "the others have batches of 4 and eta 0. Seconds compare only where all arms were trained with nothing else running.",
        "A reward query is an image scored; DRaFT-LV scores three per image. The names carry the paper's K of 50.",
        "All gradient arms climb alike here. Probably it is Adam, whose step is of one size however good its gradient is, that "
        "sets their pace, and not the noise in the gradient, which is what DRaFT-LV and truncation save; this was not "
        "measured.",
    ),
)  # fmt: skip
run = partial(run_study, STUDY)
