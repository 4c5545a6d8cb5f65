"""Fig. 7 of DRaFT: a LoRA scaled, and two LoRAs of two rewards mixed: α of ``clip``'s and β of ``style``'s.

W' = W + α B₁ A₁ + β B₂ A₂        exact: ranks are concatenated, A and B never averaged apart
"""

from __future__ import annotations

from itertools import pairwise

from tilting.reports.grid import write_rows
from tilting_papers.charts import Panel, chart
from tilting_papers.draft.charts import columns, name_of, over, pictured, tile
from tilting_papers.draft.claims import higher
from tilting_papers.draft.study import BASE, DRAFT, Claim, Results, Study, Training, Variant
from tilting_papers.numbers import Finding, difference

FIRST, SECOND = "lora-clip", "lora-style"
STYLE = "style:noto"
SCALES = (0.25, 0.5, 0.75, 1.0, 1.5)
GRID = (0.0, 0.5, 1.0)


def mix_name(a: float, b: float = 0.0) -> str:
    """Of the row of a mix, or of ``clip``'s LoRA at a scale."""
    if b == 0:
        return {0.0: BASE, 1.0: FIRST}.get(a, f"scale-{a:g}")
    return SECOND if (a, b) == (0.0, 1.0) else f"mix-{a:g}-{b:g}"


def variants(results: Results) -> list[Variant]:
    """Scales of the first LoRA, and the grid of mixes; small, one of each."""
    weights = [(s, 0.0) for s in SCALES if s != 1 and (s == 0.5 or not results.small)]
    weights += [(a, b) for b in GRID for a in GRID if b and (a, b) != (0, 1) and (a == b == 0.5 or not results.small)]
    loras = results.lora(FIRST), results.lora(SECOND)
    return [Variant(mix_name(a, b), tuple((lora, w) for lora, w in zip(loras, (a, b), strict=True) if w)) for a, b in weights]


def _scales(results: Results) -> list[tuple[float, str]]:
    return [(s, mix_name(s)) for s in (0.0, *SCALES) if mix_name(s) in results.names]


def figures(results: Results) -> list[str]:
    """Rewards over the scale, a column of pictures per scale, and the mixes of one picture."""
    scales = _scales(results)
    panels = [
        Panel("LoRA scale", name_of(results, what, where), {"clip's LoRA": over(results, scales, what, where)})
        for what, where in ((results.spec, "train"), (results.spec, "held-out"), ("judge", "held-out"))
    ]
    rows = []
    mixes = [mix_name(a, b) for b in GRID for a in GRID if mix_name(a, b) in results.names]
    for b in GRID if pictured(results, [results.sheet(name) for name in mixes], results.out / "mix.png") else ():
        names = [(f"{a:g} clip + {b:g} style", mix_name(a, b)) for a in GRID if mix_name(a, b) in results.names]
        cells = [(label, tile(results.sheet(name), 0, 0, results.size.images)) for label, name in names]
        rows.append((f"{b:g} x style's LoRA", cells))
    prompt = results.protocol.sets[results.first][0]
    title, path = f"two LoRAs mixed: {prompt!r}", results.out / "mix.png"
    mixed = write_rows(rows, title, "the same noise throughout", path).name if rows else ""
    sheet = columns(results, [(name, f"x {s:g}") for s, name in scales], results.out / "scales.png", title="LoRA scale")
    return [chart(panels, results.out / "scale.png"), sheet, mixed]


def monotone(results: Results) -> Finding | None:
    """That the reward rises with every step of the scale up to 1; the least rise is what counts."""
    names = [name for s, name in _scales(results) if s <= 1]
    if len(names) < 2:
        return None
    rises = [difference(results.values(b), results.values(a), f"(clip), {b} - {a}") for a, b in pairwise(names)]
    worst = min(rises, key=lambda finding: finding["difference"]["low"])
    return {**worst, "found": f"the least of {len(rises)} rises is {worst['found']}"}


STUDY = Study(
    name="draft-fig7",
    about="LoRA scaling and mixing",
    paper=f"{DRAFT}, Figs 5 and 7",
    after="Figs 5 (right) and 7 of Clark et al. 2024 (PickScore and HPSv2)",
    runs=(Training(FIRST, "draft-lv", reward=("clip",)), Training(SECOND, "draft-lv", reward=(STYLE,))),
    figures=figures,
    scored=("clip", STYLE),
    units={"clip": "raw cosine", STYLE: "log p of noto, nats"},
    variants=variants,
    asks=("prompts", "seeds", "steps"),
    claims=(
        Claim("scaling interpolates: the reward rises with every scale up to 1", "smoothly interpolates", monotone),
        *(
            Claim(
                f"a mix of halves has more of the {which} reward than the base model",
                "mixes combine the effects of both rewards",
                higher("mix-0.5-0.5", BASE, spec),
            )
            for which, spec in (("first", "clip"), ("second", STYLE))
        ),
    ),
    notes=("scale-s is clip's LoRA times s; mix-a-b is a times clip's and b times style's.",),
)
