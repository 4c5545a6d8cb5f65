"""Fig. 5 of the CoDeX thesis: γ1 · image reward + γ2 · prompt reward, a curve of both over γ2 for CoDe, FreeDoM and CoDeX.

``style`` stands for the aesthetic score and ``clip`` for PickScore, of 6 prompts, gradients the whole way; the end (0, 1) is
the prompt reward alone. FreeDoM has as many evaluations as CoDeX.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tilting_papers.published import published
from tilting_papers.rows import ALL, ANIMALS
from tilting_papers.tables import Row, Size, Table, run_table

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
    rows, theirs = {row["name"]: row for row in report["rows"]}, published("codex-fig5")
    ends = [name.partition("-")[2] for name in rows if name.startswith("codex-")]
    found = []
    for rival in ("code", "freedom"):
        for spec, other in (("style", "aesthetic"), ("clip", "pickscore")):
            pairs = [(rows[f"codex-{e}"]["rewards"][spec]["mean"], rows[f"{rival}-{e}"]["rewards"][spec]["mean"]) for e in ends]
            gain = sum(a - b for a, b in pairs) / len(pairs)
            share = theirs[f"{other}_gain_over_{rival}"]
            found.append({
                "what": f"codex over {rival}, {spec} ({other}), mean over the weights",
                "ours": f"{gain:+.3g} {report['units'][spec]}".replace("-", "\N{MINUS SIGN}", 1),
                "published": f"{100 * share:+.0f} %",
            })  # fmt: skip
    return found


TABLE = Table(
    "codex-fig5", "two rewards at once", "Fig. 5 of the CoDeX thesis (aesthetic score and PickScore)",
    prompts=ANIMALS[:6], reward=("style", "clip"), units={"style": "log p of noto, nats", "clip": "raw cosine"},
    size=Size(6, 4, 20, 0),
    rows=(
        Row("base", "base"),
        *(row for g in WEIGHTS for row in _rows(f"g{g}", ("style", f"clip={g}"), g in SMALL_WEIGHTS)),
        *_rows("clip", ("style=0", "clip"), False),
    ),
    figure="pareto", facts=gains,
    notes=(
        "g is γ2, γ1 = 1; rows called -clip have γ1 = 0, γ2 = 1. freedom has as many evaluations as codex (best of N runs).",
        "A percentage of a log-probability means nothing, so ours are differences; the published gains are relative.",
    ),
)  # fmt: skip
run = partial(run_table, TABLE)
