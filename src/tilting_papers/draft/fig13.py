"""Fig. 13 of DRaFT: drawn as a bear, a dog or a mouse, seen by a classifier as a cat.

The classifier is pocket-clip's zero-shot one over all concepts. Whether the pictures have become cats is asked of the judge,
a convolutional network that shares nothing with it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tilting_papers.draft.arms import Arm
from tilting_papers.draft.claims import difference, higher
from tilting_papers.draft.looks import values_of
from tilting_papers.draft.plots import chart, columns, curve, progress
from tilting_papers.draft.results import BASE, Claim, Results, Study
from tilting_papers.draft.study import run_study
from tilting_papers.page import number
from tilting_papers.verdicts import Finding

PROMPTS = ("a bear", "a dog", "a mouse")
OTHERS = ("a fox", "an owl", "a horse", "a rabbit")
BY_CLIP, BY_JUDGE = "cat by clip", "cat by judge"
ARM = "as-a-cat"


def own() -> dict[str, Any]:
    """Both scores."""
    from tilting.rewards import UserReward
    from tilting_papers.draft import zero_shot

    return {BY_CLIP: UserReward(zero_shot.cat, BY_CLIP), BY_JUDGE: UserReward(zero_shot.judged_cat, BY_JUDGE)}


def judged(results: Results) -> dict[str, Any]:
    """By set and row: the share of images with p above a half, of a cat by either network, of what was asked by the judge."""
    from math import exp, log

    rows = []
    for where in results.looks.sets:
        for name in (BASE, ARM):
            seen = results.seen(name)[where]
            parts = [list(values_of(seen, what).values()) for what in (BY_CLIP, BY_JUDGE, "judge")]
            shares = [sum(v > log(0.5) for v in part) / len(part) for part in parts]
            means = [sum(map(exp, part)) / len(part) for part in parts]
            rows.append([where, name, *(f"{share:.0%} ({number(mean, 2)})" for share, mean in zip(shares, means, strict=True))])
    heads = ["prompts", "row", "a cat, says pocket-clip", "a cat, says the judge", "what was asked, says the judge"]
    return {"Share of images with p above a half (mean p)": {"heads": heads, "rows": rows}}


def figures(results: Results) -> list[str]:
    """Training curves of both networks' belief, and samples."""
    panels = [curve(results, "step", what, results.first) for what in (BY_CLIP, BY_JUDGE, "judge")]
    panels[2] = panels[2]._replace(up=f"what was asked, by the judge (log p), {results.first} prompts")
    names, title = [(BASE, "before"), (ARM, "after")], "drawn as asked, trained towards a cat"
    sheet = columns(results, names, results.out / "samples.png", title=title)
    return [chart(panels, results.out / "curves.png"), sheet, progress(results, results.out / "progress.png")]


def followed(results: Results) -> Finding | None:
    """That the judge gives the trained model's images to the cat rather than to what was asked."""
    seen = results.seen(ARM)[results.first]
    return difference(values_of(seen, BY_JUDGE), values_of(seen, "judge"), "nats (judge), cat - what was asked")


STUDY = Study(
    "draft-fig13", "adversarial: drawn as one concept, seen as another", "Fig. 13 of Clark et al. 2024 (ResNet-50, target cat)",
    arms=(Arm(ARM, "draft-lv", reward=(f"{Path(__file__).with_name('zero_shot.py')}:cat",)),), figures=figures,
    scored=(BY_CLIP, BY_JUDGE), units={BY_CLIP: "log p, nats", BY_JUDGE: "log p, nats"}, own=own, extra=judged,
    prompts=PROMPTS, sets={"train": PROMPTS, "other": OTHERS},
    claims=(
        Claim("the classifier is taken in: its log p(cat) rises", "images are classified as the target (qualitative)",
              higher(ARM, BASE, BY_CLIP)),
        Claim("another network follows: the judge's log p(cat) rises too",
              "cat-like textures, shapes mostly unchanged (qualitative)", higher(ARM, BASE, BY_JUDGE)),
        Claim("they have become cats: the judge believes in the cat more than in what was asked",
              "shapes mostly unchanged (qualitative), so no", followed),
    ),
    notes=(
        "No ImageNet classifier ships with pocket: the reward is log p(cat) of pocket-clip's zero-shot classifier over all of "
        "pocket's concepts.",
    ),
)  # fmt: skip
run = partial(run_study, STUDY)
