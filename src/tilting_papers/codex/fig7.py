"""Fig. 7.1 of the CoDeX thesis: the SDEdit strength r. The lower r, the nearer to the reference picture and the less can be
steered: reward (``clip`` for PickScore) against distance to the reference, for SDEdit, CoDe and CoDeX."""

from __future__ import annotations

from functools import partial

from tilting_papers.codex.table5 import CODEX, SOURCES
from tilting_papers.rows import CLIP_NOTE, SCENES
from tilting_papers.tables import Row, Size, Table, run_table

STRENGTHS = (0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
SMALL_STRENGTHS = (0.4, 0.8)

TABLE = Table(
    "codex-fig7", "the SDEdit strength r", "Fig. 7.1 of the CoDeX thesis ((T+I)2I, PickScore)",
    prompts=SCENES[:10], reward=("clip",), units={"clip": "raw cosine"}, sources=SOURCES, size=Size(10, 2, 20, 2),
    rows=(
        Row("base", "base"),
        *(
            row
            for r in STRENGTHS
            for row in (
                Row(f"sdedit-r{r:g}", "sdedit", strength=r, small=r in SMALL_STRENGTHS),
                Row(f"code-r{r:g}", "code", 4, strength=r, small=r in SMALL_STRENGTHS),
                Row(f"codex-r{r:g}", "codex", 4, CODEX, strength=r, small=r in SMALL_STRENGTHS),
            )
        ),
    ),
    figure="strength",
    notes=(CLIP_NOTE, "The figure of the thesis holds pictures at r = .6 and .5 and no numbers to compare with."),
)  # fmt: skip
run = partial(run_table, TABLE)
