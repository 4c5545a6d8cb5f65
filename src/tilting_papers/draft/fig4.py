"""Figs 4 and 9 of DRaFT: K, the number of last steps that carry gradient, = 1, 5, 10, 30, 50.

Fig. 4 adds DRaFT-LV and ReFL, on a preference reward, and asks whether it carries over: ``clip`` has HPSv2's part; prompts that
carry over are animals that training never names, and whole scenes; the reward that it carries over to is the judge, which no
reward reads. Fig. 9 is on a reward of the image alone; ``style``, log p(noto | image), for the aesthetic score.
"""

from __future__ import annotations

from dataclasses import replace

from tilting_papers.charts import Panel, chart
from tilting_papers.draft.charts import curve, name_of, over
from tilting_papers.draft.claims import falls, faster, higher, sooner
from tilting_papers.draft.fig3 import FREE
from tilting_papers.draft.study import BASE, DRAFT, HELD, STYLE, TRAIN, Claim, Results, Size, Study, Training, Variant, of_fifty
from tilting_papers.prompts import SCENES
from tilting_papers.published import published
from tilting_papers.recipe import later

FIFTY = (1, 5, 10, 30, 50)
"""K of the paper's 50 steps; at T = 20 they are 1, 2, 4, 12 and 20."""
LOOKS = Size(images=2, evaluations=20, prompts=12)
"""A look every five steps, at every prompt of training."""
UNTOLD = "no such run"
ABLATION = tuple(Training(f"draft-{k}", "draft-k", k=k, published=f"draft-{k}", small=k in (1, 50)) for k in FIFTY)


def table2(*rows: str) -> str:
    """Published values of Table 2 against each other."""
    values = published("draft-table2")
    return f"{' against '.join(f'{values[row]:.4f}' for row in rows)} on HPSv2 (Table 2)"


CLAIMS = (
    Claim(
        "one step is better than all: DRaFT-1 ends above DRaFT-50", table2("draft-1", "draft-50"), higher("draft-1", "draft-50")
    ),
    Claim(
        "quality falls for K above 10: DRaFT-10 ends above DRaFT-50",
        "performance degrades as K increases above 10",
        higher("draft-10", "draft-50"),
    ),
    Claim("DRaFT-5 ends above DRaFT-1", table2("draft-5", "draft-1"), higher("draft-5", "draft-1")),
)


SPEED = (
    Claim("DRaFT-LV learns faster than DRaFT-1", "about twice as fast", faster("draft-lv", "draft-1")),
    Claim("DRaFT-1 learns faster than DRaFT-50", "truncation speeds up learning", faster("draft-1", "draft-50")),
    Claim("where nothing is clipped, DRaFT-LV learns faster than DRaFT-1", UNTOLD, faster("draft-lv-free", "draft-1-free")),
    Claim("where nothing is clipped, DRaFT-1 learns faster than DRaFT-50", UNTOLD, faster("draft-1-free", "draft-50-free")),
    Claim(
        "DRaFT-LV reaches half of DRaFT-1's gain in at most two thirds of its steps",
        "about half of them",
        sooner("draft-lv", "draft-1"),
    ),
)


def figures(results: Results) -> list[str]:
    """Training curves, and the last evaluation over K on every set, by the reward and by the judge."""
    sets, steps = list(results.protocol.sets), results.size.steps
    ks = [
        (of_fifty(run.k, steps), run.name)
        for run in results.study.runs
        if run.k and run.clip < FREE and run.name in results.names
    ]
    curves = [curve(results, "step", results.spec, where) for where in sets]
    last = [
        Panel(f"K of T = {steps}", name_of(results, what, where), {"draft-k": over(results, ks, what, where)})
        for what in (results.spec, "judge")
        for where in sets
    ]
    return [chart(curves, results.out / "curves.png"), chart(last, results.out / "over-k.png")]


def halfway(results: Results) -> list[Variant]:
    """DRaFT-LV at the evaluation nearest to half its steps, the paper's "5k steps"."""
    if "draft-lv" not in results.names:
        return []
    steps = [point["step"] for point in results.points("draft-lv")]
    middle = min(steps, key=lambda step: abs(step - steps[-1] / 2))
    return [Variant("draft-lv-half", ((results.lora("draft-lv", middle), 1.0),))]


FIG4 = Study(
    name="draft-fig4",
    about="how many steps carry gradient; held-out prompts and reward",
    paper=f"{DRAFT}, Fig. 4 and Table 2",
    title="how many steps carry gradient, and what carries over",
    after="Fig. 4 and Table 2 of Clark et al. 2024 (HPSv2)",
    runs=(
        *ABLATION,
        Training("draft-lv", "draft-lv", published="draft-lv"),
        Training("refl", "refl", published="refl"),
        Training("draft-1-free", "draft-k", k=1, clip=FREE, small=False),
        Training("draft-50-free", "draft-k", k=50, clip=FREE, small=False),
        Training("draft-lv-free", "draft-lv", clip=FREE, small=False),
    ),
    size=LOOKS,
    seeds=3,
    between=1,
    extra=later("draft.variance:binding"),
    figures=figures,
    sets={"train": TRAIN, "held-out": HELD, "scenes": SCENES},
    variants=halfway,
    published=("draft-table2", "HPSv2, average of four categories"),
    claims=(
        *CLAIMS,
        *SPEED,
        Claim("DRaFT-LV ends highest: above DRaFT-1", table2("draft-lv", "draft-1"), higher("draft-lv", "draft-1")),
        Claim("DRaFT-1 ends above ReFL", f"slightly: {table2('draft-1', 'refl')}", higher("draft-1", "refl")),
        Claim(
            "it carries over to animals that were not trained on (DRaFT-LV above base)",
            "transfers well across prompt sets",
            higher("draft-lv", BASE, where="held-out"),
        ),
        Claim(
            "it carries over to scenes (DRaFT-LV above base)",
            "transfers well across prompt sets",
            higher("draft-lv", BASE, where="scenes"),
        ),
        Claim(
            "it carries over to another reward: the judge rises on held-out prompts (DRaFT-LV above base)",
            f"fairly well, trained on PickScore and not at all: {table2('draft-lv-trained-on-pickscore', 'sd-1.4')}",
            higher("draft-lv", BASE, "judge", "held-out"),
            judge=True,
        ),
    ),
    notes=(
        "Names carry the paper's K of 50; the column K is ours. draft-lv-half is draft-lv at the look nearest half its steps; "
        "arms called free are not clipped, the others to a gradient norm of 1. Intervals are over training seeds and prompts.",
    ),
)
FIG9 = Study(
    name="draft-fig9",
    about="how many steps carry gradient, on a reward of the image alone",
    paper=f"{DRAFT}, Fig. 9",
    after="Fig. 9 of Clark et al. 2024 (aesthetic score)",
    runs=tuple(replace(run, published=None) for run in ABLATION),
    figures=figures,
    reward=("style",),
    units=STYLE,
    claims=(
        *CLAIMS,
        Claim(
            "the judge falls under DRaFT-1, for the reward says nothing of the prompt",
            "methods first improve images and then collapse to very similar ones of high reward",
            falls("draft-1"),
            judge=True,
        ),
    ),
    notes=("Names carry the paper's K of 50; the column K is ours.",),
)
