"""Fig. 7 of DRaFT: a LoRA scaled, and two LoRAs of two rewards mixed: α of ``clip``'s and β of ``style``'s.

W' = W + α B₁ A₁ + β B₂ A₂        exact: ranks are concatenated, A and B never averaged apart
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from tilting.reports.grid import write_rows
from tilting_papers.draft.arms import Arm
from tilting_papers.draft.claims import difference, higher
from tilting_papers.draft.looks import Variant, interval, tile
from tilting_papers.draft.plots import Panel, chart, columns, name_of
from tilting_papers.draft.results import BASE, Claim, Results, Study
from tilting_papers.draft.study import run_study
from tilting_papers.verdicts import Finding

FIRST, SECOND = "lora-clip", "lora-style"
STYLE = "style:noto"
SCALES = (0.25, 0.5, 0.75, 1.0, 1.5)
GRID = (0.0, 0.5, 1.0)


def scale_name(scale: float) -> str:
    """Of the row of ``clip``'s LoRA at a scale."""
    return {0.0: BASE, 1.0: FIRST}.get(scale, f"scale-{scale:g}")


def mix_name(a: float, b: float) -> str:
    """Of the row of a mix."""
    if b == 0:
        return scale_name(a)
    return SECOND if (a, b) == (0.0, 1.0) else f"mix-{a:g}-{b:g}"


def variants(results: Results) -> list[Variant]:
    """Scales of the first LoRA, and the grid of mixes; small, one of each."""
    one, two = results.lora(FIRST), results.lora(SECOND)
    scales = [s for s in SCALES if s != 1 and (s == 0.5 or not results.small)]
    mixes = [(a, b) for b in GRID for a in GRID if b and mix_name(a, b) != SECOND and (a == b == 0.5 or not results.small)]
    return [Variant(scale_name(s), ((one, s),)) for s in scales] + [
        Variant(mix_name(a, b), tuple((lora, w) for lora, w in ((one, a), (two, b)) if w)) for a, b in mixes
    ]


def _scales(results: Results) -> list[tuple[float, str]]:
    return [(s, scale_name(s)) for s in (0.0, *SCALES) if results.has(scale_name(s))]


def figures(results: Results) -> list[str]:
    """Rewards over the scale, a column of pictures per scale, and the mixes of one picture."""
    panels = [
        Panel("LoRA scale", f"{name_of(results, what)}, {where} prompts",
              {"clip's LoRA": [(s, interval(results.values(name, what, where))) for s, name in _scales(results)]})
        for what, where in ((results.spec, "train"), (results.spec, "held-out"), ("judge", "held-out"))
    ]  # fmt: skip
    names = [(name, f"x {s:g}") for s, name in _scales(results)]
    rows = []
    for b in GRID:
        cells = []
        for a in GRID:
            if results.has(mix_name(a, b)):
                sheet = results.sheet(mix_name(a, b))
                cells.append((f"{a:g} clip + {b:g} style", tile(sheet, 0, 0, results.size.images)))
        rows.append((f"{b:g} x style's LoRA", cells))
    prompt = results.looks.sets[results.first][0]
    mixed = write_rows(rows, f"two LoRAs mixed: {prompt!r}", "the same noise throughout", results.out / "mix.png").name
    scales = columns(results, names, results.out / "scales.png", title="LoRA scale")
    return [chart(panels, results.out / "scale.png"), scales, mixed]


def monotone(results: Results) -> Finding | None:
    """That the reward rises with every step of the scale up to 1; the least rise is what counts."""
    steps = [(s, name) for s, name in _scales(results) if s <= 1]
    if len(steps) < 2:
        return None
    rises = [difference(results.values(b), results.values(a), f"(clip), {b} - {a}") for (_, a), (_, b) in pairwise(steps)]
    worst = min(rises, key=lambda finding: finding["difference"]["low"])
    return {**worst, "found": f"the least of {len(rises)} rises is {worst['found']}"}


STUDY = Study(
    "draft-fig7", "LoRA scaling and mixing", "Figs 5 (right) and 7 of Clark et al. 2024 (PickScore and HPSv2)",
    arms=(Arm(FIRST, "draft-lv", reward=("clip",)), Arm(SECOND, "draft-lv", reward=(STYLE,))),
    figures=figures, scored=("clip", STYLE), units={"clip": "raw cosine", STYLE: "log p of noto, nats"}, variants=variants,
    claims=(
        Claim("scaling interpolates: the reward rises with every scale up to 1", "smoothly interpolates", monotone),
        Claim("a mix of halves has more of the first reward than the base model", "mixes combine the effects of both rewards",
              higher("mix-0.5-0.5", BASE, "clip")),
        Claim("a mix of halves has more of the second reward than the base model", "mixes combine the effects of both rewards",
              higher("mix-0.5-0.5", BASE, STYLE)),
    ),
    notes=("scale-s is clip's LoRA times s; mix-a-b is a times clip's and b times style's.",),
)  # fmt: skip
run = partial(run_study, STUDY)
