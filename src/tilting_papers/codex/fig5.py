"""Fig. 5 of the CoDeX thesis: γ1 · image reward + γ2 · prompt reward, a curve of both over γ2 for CoDe, FreeDoM and CoDeX.

``style`` stands for the aesthetic score and ``clip`` for PickScore, of 6 prompts, gradients the whole way; the end (0, 1) is
the prompt reward alone. FreeDoM has as many evaluations as CoDeX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilting_papers.codex.table import ALL, THESIS, Row, Size, Table
from tilting_papers.numbers import mean
from tilting_papers.page import MINUS
from tilting_papers.prompts import ANIMALS
from tilting_papers.published import published

WEIGHTS = (0, 2, 5, 10, 25, 50, 150, 500)
SMALL_WEIGHTS = (0, 50)


def _rows(end: str, reward: tuple[str, ...], small: bool) -> tuple[Row, ...]:
    return (
        Row(f"code-{end}", "code", 4, reward=reward, small=small),
        Row(f"codex-{end}", "codex", 4, {"window": ALL}, reward=reward, small=small),
        Row(f"freedom-{end}", "freedom", equal=f"codex-{end}", reward=reward, small=small),
    )


def gains(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """CoDeX over CoDe and FreeDoM on average over the weights, in each reward's own unit, beside the published percentages."""
    rows, theirs = {row["name"]: row["rewards"] for row in report["rows"]}, published("codex-fig5")
    ends = [name.partition("-")[2] for name in rows if name.startswith("codex-")]
    facts = []
    for rival in ("code", "freedom"):
        for spec, other in (("style", "aesthetic"), ("clip", "pickscore")):
            gain = mean([rows[f"codex-{end}"][spec]["mean"] - rows[f"{rival}-{end}"][spec]["mean"] for end in ends])
            what = f"codex over {rival}, {spec} ({other}), mean over the weights"
            ours = f"{gain:+.3g} {report['units'][spec]}".replace("-", MINUS, 1)
            facts.append({"what": what, "ours": ours, "published": f"{100 * theirs[f'{other}_gain_over_{rival}']:+.0f} %"})
    return facts


FIG5 = Table(
    name="codex-fig5",
    about="two rewards at once: the Pareto curve over the weight of the second",
    paper=f"{THESIS}, Fig. 5",
    title="two rewards at once",
    after=f"Fig. 5 of {THESIS} (aesthetic score and PickScore)",
    prompts=ANIMALS[:6],
    reward=("style", "clip"),
    units={"style": "log p of noto, nats", "clip": "raw cosine"},
    size=Size(6, 4, 20, 0),
    rows=(
        Row("base", "base"),
        *(row for g in WEIGHTS for row in _rows(f"g{g}", ("style", f"clip={g}"), g in SMALL_WEIGHTS)),
        *_rows("clip", ("style=0", "clip"), False),
    ),
    figure="pareto",
    facts=gains,
    notes=(
        "g is γ2, γ1 = 1; rows called -clip have γ1 = 0, γ2 = 1. freedom has as many evaluations as codex (best of N runs).",
        "A percentage of a log-probability means nothing, so ours are differences; the published gains are relative.",
    ),
)
