"""Table 2 of the CoDeX thesis: the gradient methods on a reward of the image alone (``style`` for the aesthetic score).

As the thesis ran them and, which it did not, at CoDeX's number of evaluations. Gradients from t/T = .6 on; the thesis' own row
is schedule and multinomial.
"""

from __future__ import annotations

from functools import partial

from tilting_papers.rows import (
    AESTHETIC_SCHEDULE,
    ANIMALS,
    LATE,
    RIVALS_CLAIMS,
    RIVALS_NOTES,
    RIVALS_SIZE,
    SCHEDULE_NOTE,
    STYLE_STRENGTHS,
    STYLE_TUNED,
    rivals,
)
from tilting_papers.tables import Table, run_table

TABLE = Table(
    "codex-table2", "CoDeX and the gradient methods on a reward of the image alone",
    "Table 2 of the CoDeX thesis (aesthetic score)",
    prompts=ANIMALS, reward=("style",), units={"style": "log p of noto, nats"},
    rows=rivals(LATE, {"schedule": AESTHETIC_SCHEDULE, "tau": 0.001}, STYLE_STRENGTHS), against=("base", "codex-4"),
    published="codex-table2", published_unit="LAION aesthetic score", claims=RIVALS_CLAIMS, size=RIVALS_SIZE,
    notes=(*RIVALS_NOTES, SCHEDULE_NOTE, STYLE_TUNED),
)  # fmt: skip
run = partial(run_table, TABLE)
