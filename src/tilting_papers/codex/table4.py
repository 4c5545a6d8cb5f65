"""Table 4 of the CoDeX thesis: CoDe and CoDeX on a reward of image and prompt (``clip`` for PickScore).

Gradients the whole way, τ = .0003, the PickScore schedule.
"""

from __future__ import annotations

from functools import partial

from tilting_papers.rows import ABLATION_CLAIMS, ALL, CLIP_NOTE, PICKSCORE_SCHEDULE, SCENES, SCHEDULE_NOTE, ablation
from tilting_papers.tables import Table, run_table

TABLE = Table(
    "codex-table4", "CoDe and CoDeX on a reward of image and prompt", "Table 4 of the CoDeX thesis (PickScore)",
    prompts=SCENES, reward=("clip",), units={"clip": "raw cosine"},
    rows=ablation(ALL, 0.0003, PICKSCORE_SCHEDULE), against=("base", "code-4"),
    published="codex-table4", published_unit="PickScore, raw cosine", claims=ABLATION_CLAIMS, notes=(SCHEDULE_NOTE, CLIP_NOTE),
)  # fmt: skip
run = partial(run_table, TABLE)
