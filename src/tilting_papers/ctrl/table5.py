"""Zhao et al. 2024, Table 5: reconstruction guidance (DPS) over its strength, per class of JPEG size, at pocket's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tilting_papers.ctrl.rows import Row
from tilting_papers.ctrl.study import Study, above, best_name, run_control_study
from tilting_papers.folder import Report
from tilting_papers.published import published

GAMMAS = (5, 7.5, 10, 20, 50)
PAPER = published("ctrl-table5")


def _published(gamma: float) -> str:
    at = PAPER["gammas"].index(gamma)
    found = [" / ".join(f"{PAPER[f'y{y}'][what][at]:g}" for y in range(4)) for what in ("accuracy", "score")]
    return f"{found[0]} per class, scores {found[1]}"


def claims(report: Report, seen: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The paper's reading of its table: guidance helps the outer classes, and spoils those between."""
    best, base, last = seen[best_name("dps")], seen["base"], report["rows"][-2]["name"]
    found = []
    for y in (0, 3):
        text = f"Guidance at its best strength obeys class {y}, an outer one, more often than the base model"
        found.append(above(text, [best[y]], [base[y]], "+0.26 at y = 0, +0.53 at y = 3"))
    for y in (1, 2):
        text = f"Guidance at its greatest strength ({last}) obeys class {y}, one between, less often than the base model"
        found.append(above(text, [base[y]], [seen[last][y]], "0.45 falls to 0 at y = 1, 0.13 to 0.08 at y = 2"))
    return found


STUDY = Study(
    "ctrl-table5", "reconstruction guidance over its strength, per class of JPEG size",
    "Zhao et al. 2024, appendix D.2, Table 5",
    (Row("base", "base"), *(Row(f"dps-{gamma}", "dps", gamma, small=gamma in (5, 20)) for gamma in GAMMAS)), worst=None,
    claims=claims,
    published={"base": _published(0), **{f"dps-{gamma}": _published(gamma) for gamma in GAMMAS}},
    notes=("The paper: Stable Diffusion 1.5, T = 50; its scores are of pictures of 512 x 512. Strength 0 is the base model.",),
)  # fmt: skip
run = partial(run_control_study, STUDY)
