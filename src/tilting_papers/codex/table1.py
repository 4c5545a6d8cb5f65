"""Table 1 of the CoDeX thesis: CoDe and CoDeX on a reward of the image alone.

The aesthetic score's part is played by ``style``, log p(noto | image): a gradient from a network of images, and something that
the prompts do not ask for. Gradients from t/T = .6 on, τ = .001, the aesthetic schedule.
"""

from __future__ import annotations

from functools import partial

from tilting_papers.rows import ABLATION_CLAIMS, AESTHETIC_SCHEDULE, ANIMALS, LATE, SCHEDULE_NOTE, ablation
from tilting_papers.tables import Table, run_table

TABLE = Table(
    "codex-table1", "CoDe and CoDeX on a reward of the image alone", "Table 1 of the CoDeX thesis (aesthetic score)",
    prompts=ANIMALS, reward=("style",), units={"style": "log p of noto, nats"},
    rows=ablation(LATE, 0.001, AESTHETIC_SCHEDULE), against=("base", "code-4"),
    published="codex-table1", published_unit="LAION aesthetic score", claims=ABLATION_CLAIMS,
    notes=(
        SCHEDULE_NOTE,
        "style reads pocket-clip's embedding, which CMMD and T-CLIP measure in too: the judge is held out, they are not.",
    ),
)  # fmt: skip
run = partial(run_table, TABLE)
