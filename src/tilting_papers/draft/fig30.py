"""Fig. 30 of DRaFT: two attempts to keep images diverse under a reward of the image alone.

Reward dropout drops 95 % of the units inside the reward, drawn afresh in every training step, as the paper does inside its
aesthetic classifier. The other adds a weight times the distance of each image of a minibatch to the one opposite, of pixels
or of pocket-clip's embeddings (the paper's second measure is LPIPS).
"""

from __future__ import annotations

from tilting_papers.charts import Panel, chart
from tilting_papers.draft.charts import columns, curve
from tilting_papers.draft.claims import falls, higher
from tilting_papers.draft.study import DRAFT, STYLE, Claim, Results, Size, Study, Training
from tilting_papers.numbers import interval

PLAIN, DROPPED, MOST = "draft-1", "dropout-0.95", "clip-10"
UNLIKE = {"euclid-5": "euclid=5", "clip-2": "clip=2", MOST: "clip=10"}


def figures(results: Results) -> list[str]:
    """Reward and diversity as training goes on, one over the other, and the pictures."""
    where, ends = "held-out", {}
    for name in results.names:
        reward = interval(results.values(name, None, where))
        ends[name] = [(reward["mean"] if reward else 0.0, interval(results.values(name, "apart", where)))]
    front = Panel(f"{results.spec}, {where} prompts", f"distance of two images of a prompt, {where}", ends)
    apart = curve(results, "step", "apart", where)._replace(up=front.up)
    diversity = chart([curve(results, "step", results.spec, where), apart, front], results.out / "diversity.png")
    return [diversity, columns(results, [(name, name) for name in results.names], results.out / "samples.png", where)]


STUDY = Study(
    name="draft-fig30",
    about="two attempts at diversity",
    paper=f"{DRAFT}, Fig. 30",
    title="attempts at diversity",
    after="Fig. 30 of Clark et al. 2024 (aesthetic score)",
    runs=(
        Training(PLAIN, "draft-k", k=1),
        Training(DROPPED, "draft-k", k=1, options={"reward-dropout": 0.95}),
        *(Training(name, "draft-k", k=1, options={"diversity": term}, small=name == MOST) for name, term in UNLIKE.items()),
    ),
    figures=figures,
    reward=("style",),
    units=STYLE,
    size=Size(train_steps=150, batch=8),
    asks=("reward", "prompts", "seeds", "steps"),
    claims=(
        Claim(
            "DRaFT-1 collapses: two images of a prompt come closer",
            "collapses to very similar images of high reward",
            falls(PLAIN, "apart", "held-out"),
        ),
        Claim(
            "reward dropout does not prevent it: they come closer too",
            "even 0.95 led to diversity collapse",
            falls(DROPPED, "apart", "held-out"),
        ),
        Claim(
            "a heavy diversity term keeps images further apart than DRaFT-1 does",
            "increased inner-batch diversity",
            higher(MOST, PLAIN, "apart", "held-out"),
        ),
        Claim("and costs reward: DRaFT-1 ends above it", "at the expense of the aesthetic score", higher(PLAIN, MOST)),
    ),
    notes=(
        "dropout-0.95 scales what is kept by 20. Looks are scored by the whole reward. euclid-5, clip-2 and clip-10 name the "
        "measure and the weight of the diversity term, in nats per unit of distance.",
    ),
)
