"""Fig. 13 of DRaFT: drawn as a bear, a dog or a mouse, seen by a classifier as a cat.

The classifier is pocket-clip's zero-shot one over all concepts. Whether the pictures have become cats is asked of the judge,
a convolutional network that shares nothing with it.
"""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from typing import Any

from tilting.rewards import UserReward
from tilting_papers.charts import chart
from tilting_papers.draft.charts import columns, curve, progress
from tilting_papers.draft.claims import higher
from tilting_papers.draft.study import BASE, DRAFT, Claim, Results, Study, Training
from tilting_papers.numbers import Finding, difference, mean
from tilting_papers.page import number

PROMPTS = ("a bear", "a dog", "a mouse")
OTHERS = ("a fox", "an owl", "a horse", "a rabbit")
BY_CLIP, BY_JUDGE = "cat by clip", "cat by judge"
RUN = "as-a-cat"


def own() -> dict[str, Any]:
    """Both scores; the file of the first is a user's reward, which no run forgets: it is not to change."""
    from tilting_papers.draft import zero_shot

    return {BY_CLIP: UserReward(zero_shot.cat, BY_CLIP), BY_JUDGE: UserReward(zero_shot.judged_cat, BY_JUDGE)}


def judged(results: Results) -> dict[str, Any]:
    """By set and row: the share of images with p above a half, of a cat by either network, of what was asked by the judge."""
    rows = []
    for where in results.protocol.sets:
        for name in (BASE, RUN):
            parts = [list(results.values(name, what, where).values()) for what in (BY_CLIP, BY_JUDGE, "judge")]
            cells = [f"{mean([v > log(0.5) for v in part]):.0%} ({number(mean([*map(exp, part)]), 2)})" for part in parts]
            rows.append([where, name, *cells])
    heads = ["prompts", "row", "a cat, says pocket-clip", "a cat, says the judge", "what was asked, says the judge"]
    return {"Share of images with p above a half (mean p)": {"heads": heads, "rows": rows}}


def figures(results: Results) -> list[str]:
    """Training curves of both networks' belief, and samples."""
    panels = [curve(results, "step", what, results.first) for what in (BY_CLIP, BY_JUDGE, "judge")]
    panels[2] = panels[2]._replace(up=f"what was asked, by the judge (log p), {results.first} prompts")
    names, title = [(BASE, "before"), (RUN, "after")], "drawn as asked, trained towards a cat"
    sheet = columns(results, names, results.out / "samples.png", title=title)
    return [chart(panels, results.out / "curves.png"), sheet, progress(results, results.out / "progress.png")]


def followed(results: Results) -> Finding:
    """That the judge gives the trained model's images to the cat rather than to what was asked."""
    return difference(results.values(RUN, BY_JUDGE), results.values(RUN, "judge"), "nats (judge), cat - what was asked")


STUDY = Study(
    name="draft-fig13",
    about="adversarial: drawn as one concept, seen by a classifier as another",
    paper=f"{DRAFT}, Fig. 13",
    title="adversarial: drawn as one concept, seen as another",
    after="Fig. 13 of Clark et al. 2024 (ResNet-50, target cat)",
    runs=(Training(RUN, "draft-lv", reward=(f"{Path(__file__).with_name('zero_shot.py')}:cat",)),),
    figures=figures,
    scored=(BY_CLIP, BY_JUDGE),
    units={BY_CLIP: "log p, nats", BY_JUDGE: "log p, nats"},
    own=own,
    asks=("seeds", "steps"),
    extra=judged,
    prompts=PROMPTS,
    sets={"train": PROMPTS, "other": OTHERS},
    claims=(
        Claim(
            "the classifier is taken in: its log p(cat) rises",
            "images are classified as the target (qualitative)",
            higher(RUN, BASE, BY_CLIP),
        ),
        Claim(
            "another network follows: the judge's log p(cat) rises too",
            "cat-like textures, shapes mostly unchanged (qualitative)",
            higher(RUN, BASE, BY_JUDGE),
        ),
        Claim(
            "they have become cats: the judge believes in the cat more than in what was asked",
            "shapes mostly unchanged (qualitative), so no",
            followed,
        ),
    ),
    notes=(
        "No ImageNet classifier ships with pocket: the reward is log p(cat) of pocket-clip's zero-shot classifier over all of "
        "pocket's concepts.",
    ),
)
