"""Fig. 30 of DRaFT: two attempts to keep images diverse under a reward of the image alone.

Reward dropout drops 95 % of the units inside the reward, drawn afresh in every training step, as the paper does inside its
aesthetic classifier. The other adds a weight times the distance of each image of a minibatch to the one opposite, of pixels
or of pocket-clip's embeddings (the paper's second measure is LPIPS).
"""

from __future__ import annotations

from functools import partial

from tilting_papers.draft.arms import Arm, Size
from tilting_papers.draft.claims import falls, higher
from tilting_papers.draft.looks import values_of
from tilting_papers.draft.plots import Panel, chart, columns, curve, interval
from tilting_papers.draft.results import BASE, Claim, Results, Study
from tilting_papers.draft.study import run_study

PLAIN, DROPPED, MOST = "draft-1", "dropout-0.95", "clip-10"
UNLIKE = {"euclid-5": "euclid=5", "clip-2": "clip=2", MOST: "clip=10"}


def figures(results: Results) -> list[str]:
    """Reward and diversity as training goes on, one over the other, and the pictures."""
    where = "held-out"
    ends = {}
    for name in (BASE, *results.summaries):
        reward = interval(results.values(name, None, where))
        ends[name] = [(reward["mean"] if reward else 0.0, interval(values_of(results.seen(name)[where], "apart")))]
    front = Panel(f"{results.spec}, {where} prompts", f"distance of two images of a prompt, {where}", ends)
    panels = [curve(results, "step", results.spec, where), curve(results, "step", "apart", where), front]
    panels[1] = panels[1]._replace(up=front.up)
    names = [(name, name) for name in (BASE, *results.summaries)]
    return [chart(panels, results.out / "diversity.png"), columns(results, names, results.out / "samples.png", where)]


STUDY = Study(
    "draft-fig30", "attempts at diversity", "Fig. 30 of Clark et al. 2024 (aesthetic score)",
    arms=(
        Arm(PLAIN, "draft-k", k=1), Arm(DROPPED, "draft-k", k=1, options={"reward-dropout": 0.95}),
        *(Arm(name, "draft-k", k=1, options={"diversity": term}, small=name == MOST) for name, term in UNLIKE.items()),
    ),
    figures=figures, reward=("style",), units={"style": "log p of noto, nats"}, size=Size(train_steps=150, batch=8),
    claims=(
        Claim("DRaFT-1 collapses: two images of a prompt come closer", "collapses to very similar images of high reward",
              falls(PLAIN, "apart", "held-out")),
        Claim("reward dropout does not prevent it: they come closer too", "even 0.95 led to diversity collapse",
              falls(DROPPED, "apart", "held-out")),
        Claim("a heavy diversity term keeps images further apart than DRaFT-1 does", "increased inner-batch diversity",
              higher(MOST, PLAIN, "apart", "held-out")),
        Claim("and costs reward: DRaFT-1 ends above it", "at the expense of the aesthetic score", higher(PLAIN, MOST)),
    ),
    notes=(
        "dropout-0.95 scales what is kept by 20. Looks are scored by the whole reward. euclid-5, clip-2 and clip-10 name the "
        "measure and the weight of the diversity term, in nats per unit of distance.",
    ),
)  # fmt: skip
run = partial(run_study, STUDY)
