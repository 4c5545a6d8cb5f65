"""Tables 1 and 4 of the CoDeX thesis: CoDe, and CoDeX with each of its parts.

Table 1 has a reward of the image alone. The aesthetic score's part is played by ``style``, log p(noto | image): a gradient from
a network of images, and something that the prompts do not ask for. Gradients from t/T = .6 on, τ = .001. Table 4 has a reward
of image and prompt (``clip`` for PickScore), gradients the whole way, τ = .0003.
"""

from __future__ import annotations

from typing import Any

from tilting_papers.codex.table import ALL, CLIP_NOTE, LATE, THESIS, Claim, Row, Table
from tilting_papers.prompts import ANIMALS, SCENES

AESTHETIC_SCHEDULE = (2, 2, 2, 4, 4, 4, 4, 6, 6, 6)
PICKSCORE_SCHEDULE = (2, 6, 6, 2, 2, 2, 4, 4, 6, 6)
SCHEDULE_NOTE = (
    "Rows with a schedule of N select every 2 draws, for each of its ten values to be in force at T = 20; the others every 5."
)
CLAIM = Claim(
    "codex-4-greedy", ("base", "code-4", "code-equal", "code-40"), "CoDeX (N = 4) beats CoDe, even at its evaluations"
)


def ablation(window: tuple[float, float], tau: float, schedule: tuple[int, ...]) -> tuple[Row, ...]:
    """The rows of both tables.

    Args:
        window: t/T inside which CoDeX takes gradients.
        tau: temperature of multinomial selection.
        schedule: N of each tenth of the run.
    """

    def codex(name: str, **settings: Any) -> Row:
        return Row(name, "codex", 4, {"window": window, **settings}, published=name)

    return (
        Row("base", "base", published="base"),
        Row("code-4", "code", 4, published="code-4"),
        Row("code-40", "code", 40, published="code-40"),
        codex("codex-4-greedy"),
        codex("codex-4-multinomial", tau=tau),
        codex("codex-schedule-greedy", schedule=schedule),
        codex("codex-schedule-multinomial", schedule=schedule, tau=tau),
        codex("codex-schedule-multinomial-kmeans", schedule=schedule, tau=tau, gradient_on="medoid"),
        Row("code-equal", "code", equal="codex-4-greedy"),
    )


TABLE1 = Table(
    name="codex-table1",
    about="CoDe and CoDeX on a reward of the image alone: N, schedule, temperature, clusters",
    paper=f"{THESIS}, Table 1",
    title="CoDe and CoDeX on a reward of the image alone",
    after=f"Table 1 of {THESIS} (aesthetic score)",
    prompts=ANIMALS,
    reward=("style",),
    units={"style": "log p of noto, nats"},
    rows=ablation(LATE, 0.001, AESTHETIC_SCHEDULE),
    against=("base", "code-4"),
    published=("codex-table1", "LAION aesthetic score"),
    claims=(CLAIM,),
    notes=(
        SCHEDULE_NOTE,
        "style reads pocket-clip's embedding, which CMMD and T-CLIP measure in too: the judge is held out, they are not.",
    ),
)
TABLE4 = Table(
    name="codex-table4",
    about="CoDe and CoDeX on a reward of image and prompt: N, schedule, temperature, clusters",
    paper=f"{THESIS}, Table 4",
    title="CoDe and CoDeX on a reward of image and prompt",
    after=f"Table 4 of {THESIS} (PickScore)",
    prompts=SCENES,
    reward=("clip",),
    units={"clip": "raw cosine"},
    rows=ablation(ALL, 0.0003, PICKSCORE_SCHEDULE),
    against=("base", "code-4"),
    published=("codex-table4", "PickScore, raw cosine"),
    claims=(CLAIM,),
    notes=(SCHEDULE_NOTE, CLIP_NOTE),
)
