"""Tables 2 and 3 of the CoDeX thesis: the gradient methods on a reward of the image alone (``style`` for the aesthetic score,
gradients from t/T = .6 on) and on one of image and prompt (``clip`` for PickScore, gradients the whole way).

As the thesis ran them and, which it did not, at CoDeX's number of evaluations. The thesis' own row is schedule and multinomial
in Table 2, schedule and greedy in Table 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilting_papers.codex.ablations import AESTHETIC_SCHEDULE, PICKSCORE_SCHEDULE, SCHEDULE_NOTE
from tilting_papers.codex.strengths import ODDS, UG
from tilting_papers.codex.table import ALL, CLIP_NOTE, LATE, THESIS, Claim, Row, Size, Table
from tilting_papers.prompts import ANIMALS, OBJECTS, SCENES
from tilting_papers.recipe import OfPocket

LARGE = Size(40, 6, 20, 0)
"""As many pictures as a distance asks for, and three seeds' worth of two."""
SIZE = Size(20, 1, 20, 0)
"""An image of each prompt, for three quarters of the rows back-propagate at every step: half an hour on one core."""
PURE = ("dps", "mpgd", "freedom", "ug", "lgd", "tfg")
STRENGTHS: dict[str, dict[str, Any]] = {
    "dps": {"strength": 0.05},
    "mpgd": {"strength": 0.2},
    "freedom": {"strength": 0.4},
    "lgd": {"strength": 0.05},
    "tfg": {"rho": 0.025, "mu": 0.025},
}
"""Settings of every gradient method, as `codex.strengths` chose them, and what differs by reward."""
STYLE = {"codex": {"gradient_block": 1, "strength": 0.05}, "ug": {"strength": UG["odds"], "rate": 0.025}}
CLIP = {"codex": {"gradient_block": 1, "strength": 0.2}, "ug": {"strength": 40.0, "rate": 0.05}}


def rivals(
    window: tuple[float, float], codex: Mapping[str, Any], strengths: Mapping[str, Mapping[str, Any]]
) -> tuple[Row, ...]:
    """The rows of both tables: the gradient methods as the thesis ran them, CoDeX, and all at CoDeX's evaluations.

    Args:
        window: t/T inside which CoDeX takes gradients.
        codex: settings of the thesis' CoDeX row.
        strengths: settings of the gradient methods for this reward.
    """

    def of(method: str, **settings: Any) -> dict[str, Any]:
        return {**STRENGTHS.get(method, {}), **strengths.get(method, {}), **settings}

    def equal(method: str) -> Row:
        return Row(
            f"{method}-equal", method, settings=of(method, **({"samples": 2} if method == "lgd" else {})), equal="codex-4"
        )

    return (
        Row("base", "base"),
        Row("mpgd", "mpgd", settings=of("mpgd"), published="mpgd"),
        Row("freedom", "freedom", settings=of("freedom", repeat=10), published="freedom"),
        Row("ug", "ug", settings=of("ug", repeat=6), published="ug"),
        Row("codex", "codex", 4, of("codex", window=window, **codex), published="codex"),
        Row("codex-4", "codex", 4, of("codex", window=window)),
        Row("code-4", "code", 4),
        *map(equal, ("bon", "code", *PURE)),
    )


CLAIM = Claim(
    "codex-4",
    ("code-4", "code-equal", "bon-equal", *(f"{method}-equal" for method in PURE), "freedom", "ug"),
    "CoDeX (N = 4) beats CoDe and every pure gradient method of the same number of evaluations",
)
NOTE = (
    "freedom and ug have the thesis' repeats (10 and 6) in one stream, which is another way to spend about CoDeX's "
    "evaluations; mpgd spends a fraction of them, as it does in the thesis. lgd averages over 2 copies of the estimate."
)
TUNED = (
    "Strengths were tuned on other prompts by codex-strengths-{}, for all alike: the weakest with 99 % of the most gain whose "
    "judge does not fall."
)
CHOSEN = (
    "Strengths are chosen first, on other prompts, for all alike (codex-strengths-odds): the one with the most gain whose "
    "judge does not fall."
)
TABLE2 = Table(
    name="codex-table2",
    about="CoDeX and the gradient methods on it, each at equal evaluations",
    paper=f"{THESIS}, Table 2",
    title="CoDeX and the gradient methods on a reward of the image alone",
    after=f"Table 2 of {THESIS} (aesthetic score)",
    prompts=(*ANIMALS, *OBJECTS),
    reward=ODDS.reward,
    units=ODDS.units,
    total=ODDS.total,
    tuned=ODDS,
    rows=rivals(LATE, {"schedule": AESTHETIC_SCHEDULE, "tau": 0.001}, STYLE),
    against=("base", "codex-4"),
    published=("codex-table2", "LAION aesthetic score"),
    claims=(CLAIM,),
    size=LARGE,
    notes=(NOTE, SCHEDULE_NOTE, OfPocket(CHOSEN)),
)
TABLE3 = Table(
    name="codex-table3",
    about="CoDeX and the gradient methods on a reward of image and prompt, each at equal evaluations",
    paper=f"{THESIS}, Table 3",
    title="CoDeX and the gradient methods on a reward of image and prompt",
    after=f"Table 3 of {THESIS} (PickScore)",
    prompts=SCENES,
    reward=("clip",),
    units={"clip": "raw cosine"},
    rows=rivals(ALL, {"schedule": PICKSCORE_SCHEDULE}, CLIP),
    against=("base", "codex-4"),
    published=("codex-table3", "PickScore, raw cosine"),
    claims=(CLAIM,),
    size=SIZE,
    notes=(NOTE, SCHEDULE_NOTE, OfPocket(TUNED.format("clip")), CLIP_NOTE),
)
