"""Table 5 and Fig. 7.1 of the CoDeX thesis: text and picture to picture, by a reward of both (``clip`` for PickScore).

SDEdit from reference pictures, and CoDe and CoDeX on it, with γ = .4 and a gradient every second step, as there. The table has
r = .6, the figure all strengths: the lower r, the nearer to the reference picture and the less can be steered.
"""

from __future__ import annotations

from typing import Any

from tilting_papers.codex.table import ALL, CLIP_NOTE, THESIS, Claim, Row, Size, Table
from tilting_papers.prompts import SCENES, scenes

SOURCES = scenes("rose orange twemoji, house purple noto, parrot black fluent")
"""Pictures that the model draws itself, to start from."""
R = 0.6
CODEX = {"window": ALL, "strength": 0.4, "gradient_block": 2}
STRENGTHS, SMALL_STRENGTHS = (0.2, 0.4, 0.5, 0.6, 0.8, 1.0), (0.4, 0.8)
SHARED: dict[str, Any] = {"reward": ("clip",), "units": {"clip": "raw cosine"}, "sources": SOURCES}


def _at(r: float) -> tuple[Row, ...]:
    few = r in SMALL_STRENGTHS
    return (
        Row(f"sdedit-r{r:g}", "sdedit", strength=r, small=few),
        Row(f"code-r{r:g}", "code", 4, strength=r, small=few),
        Row(f"codex-r{r:g}", "codex", 4, CODEX, strength=r, small=few),
    )


TABLE5 = Table(
    name="codex-table5",
    about="text and picture to picture: SDEdit, CoDe and CoDeX from reference pictures",
    paper=f"{THESIS}, Table 5",
    title="text and picture to picture",
    after=f"Table 5 of {THESIS} ((T+I)2I, PickScore)",
    prompts=SCENES,
    size=Size(20, 2, 20, 3),
    rows=(
        Row("base", "base"),
        Row("sdedit", "sdedit", strength=R, published="sdedit"),
        Row("code-4", "code", 4, strength=R, published="code-4"),
        Row("code-40", "code", 40, strength=R, published="code-40"),
        Row("codex-4-greedy", "codex", 4, CODEX, strength=R, published="codex-4-greedy"),
        Row("codex-4-multinomial", "codex", 4, {**CODEX, "tau": 0.0003}, strength=R, published="codex-4-multinomial"),
        Row("code-equal", "code", equal="codex-4-greedy", strength=R),
    ),
    against=("sdedit", "code-4"),
    published=("codex-table5", "PickScore, raw cosine"),
    claims=(Claim("codex-4-greedy", ("sdedit", "code-4", "code-equal", "code-40"), "CoDeX (N = 4) beats CoDe from a picture"),),
    notes=(
        CLIP_NOTE,
        "base draws from noise and has no reference; I-Gram is the cosine of pocket-clip's image embeddings (the published "
        "code has CLIP RN50's), and the rms of pixels is beside it because no network has a part in it.",
    ),
    **SHARED,
)
FIG7 = Table(
    name="codex-fig7",
    about="the SDEdit strength r: reward against distance to the reference picture",
    paper=f"{THESIS}, Fig. 7.1",
    title="the SDEdit strength r",
    after=f"Fig. 7.1 of {THESIS} ((T+I)2I, PickScore)",
    prompts=SCENES[:10],
    size=Size(10, 2, 20, 2),
    rows=(Row("base", "base"), *(row for r in STRENGTHS for row in _at(r))),
    figure="strength",
    notes=(CLIP_NOTE, "The figure of the thesis holds pictures at r = .6 and .5 and no numbers to compare with."),
    **SHARED,
)
