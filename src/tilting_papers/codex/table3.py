"""Table 3 of the CoDeX thesis: the gradient methods on a reward of image and prompt (``clip`` for PickScore).

As the thesis ran them and, which it did not, at CoDeX's number of evaluations. Gradients the whole way; the thesis' own row is
schedule and greedy.
"""

from __future__ import annotations

from functools import partial

from tilting_papers.rows import (
    ALL,
    CLIP_NOTE,
    CLIP_STRENGTHS,
    CLIP_TUNED,
    PICKSCORE_SCHEDULE,
    RIVALS_CLAIMS,
    RIVALS_NOTES,
    RIVALS_SIZE,
    SCENES,
    SCHEDULE_NOTE,
    rivals,
)
from tilting_papers.tables import Table, run_table

TABLE = Table(
    "codex-table3", "CoDeX and the gradient methods on a reward of image and prompt",
    "Table 3 of the CoDeX thesis (PickScore)",
    prompts=SCENES, reward=("clip",), units={"clip": "raw cosine"},
    rows=rivals(ALL, {"schedule": PICKSCORE_SCHEDULE}, CLIP_STRENGTHS), against=("base", "codex-4"),
    published="codex-table3", published_unit="PickScore, raw cosine", claims=RIVALS_CLAIMS, size=RIVALS_SIZE,
    notes=(*RIVALS_NOTES, SCHEDULE_NOTE, CLIP_TUNED, CLIP_NOTE),
)  # fmt: skip
run = partial(run_table, TABLE)
