"""Zhao et al. 2024, Table 5: reconstruction guidance (DPS) over its strength, per class of JPEG size, at pocket's size."""

from __future__ import annotations

from typing import Any

from tilting_papers.ctrl.claims import above
from tilting_papers.ctrl.study import CTRL, Cells, Row, Study, best_name
from tilting_papers.published import published
from tilting_papers.recipe import Report

GAMMAS = (5, 7.5, 10, 20, 50)
PAPER = published("ctrl-table5")


def _published(gamma: float) -> str:
    at = PAPER["gammas"].index(gamma)
    accuracy, score = (" / ".join(f"{PAPER[f'y{y}'][what][at]:g}" for y in range(4)) for what in ("accuracy", "score"))
    return f"{accuracy} per class, scores {score}"


def claims(report: Report, cells: Cells) -> list[dict[str, Any]]:
    """The paper's reading of its table: guidance helps the outer classes, and spoils those between."""
    best, base, last = cells[best_name("dps")], cells["base"], report["rows"][-2]["name"]
    made = []
    for y in (0, 3):
        text = f"Guidance at its best strength obeys class {y}, an outer one, more often than the base model"
        made.append(above(text, [best[y]], [base[y]], "+0.26 at y = 0, +0.53 at y = 3"))
    for y in (1, 2):
        text = f"Guidance at its greatest strength ({last}) obeys class {y}, one between, less often than the base model"
        made.append(above(text, [base[y]], [cells[last][y]], "0.45 falls to 0 at y = 1, 0.13 to 0.08 at y = 2"))
    return made


STUDY = Study(
    name="ctrl-table5",
    about="reconstruction guidance over its strength, per class of JPEG size",
    paper=f"{CTRL}, Table 5",
    after="Zhao et al. 2024, appendix D.2, Table 5",
    rows=(Row("base", "base"), *(Row(f"dps-{gamma}", "dps", gamma, small=gamma in (5, 20)) for gamma in GAMMAS)),
    worst=None,
    claims=claims,
    published={"base": _published(0), **{f"dps-{gamma}": _published(gamma) for gamma in GAMMAS}},
    notes=("The paper: Stable Diffusion 1.5, T = 50; its scores are of pictures of 512 x 512. Strength 0 is the base model.",),
)
