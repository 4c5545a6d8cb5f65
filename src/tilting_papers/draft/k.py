"""Arms and claims about K, the number of last steps that carry gradient, which Figs 4 and 9 of DRaFT share."""

from __future__ import annotations

from tilting_papers.draft.arms import Arm, of_fifty
from tilting_papers.draft.claims import higher
from tilting_papers.draft.looks import interval
from tilting_papers.draft.plots import Panel, chart, curve, name_of
from tilting_papers.draft.results import Claim, Results
from tilting_papers.published import published

FIFTY = (1, 5, 10, 30, 50)
"""K of the paper's 50 steps; at T = 20 they are 1, 2, 4, 12 and 20."""
ABLATION = tuple(Arm(f"draft-{k}", "draft-k", k=k, published=f"draft-{k}", small=k in (1, 50)) for k in FIFTY)


def table2(*rows: str) -> str:
    """Published values of Table 2 against each other."""
    values = published("draft-table2")
    return f"{' against '.join(f'{values[row]:.4f}' for row in rows)} on HPSv2 (Table 2)"


CLAIMS = (
    Claim("one step is better than all: DRaFT-1 ends above DRaFT-50", table2("draft-1", "draft-50"),
          higher("draft-1", "draft-50")),
    Claim("quality falls for K above 10: DRaFT-10 ends above DRaFT-50", "performance degrades as K increases above 10",
          higher("draft-10", "draft-50")),
    Claim("DRaFT-5 ends above DRaFT-1", table2("draft-5", "draft-1"), higher("draft-5", "draft-1")),
)  # fmt: skip
UNPUBLISHED = tuple(Arm(arm.name, arm.objective, k=arm.k, small=arm.small) for arm in ABLATION)
"""The same without a row of Table 2, for other rewards."""


def over_k(results: Results, what: str, where: str) -> Panel:
    """The last look over K, of the arms that have one."""
    ks = {arm.name: arm.k for arm in results.study.arms if arm.k is not None and results.has(arm.name)}
    dots = [(of_fifty(k, results.size.steps), interval(results.values(name, what, where))) for name, k in ks.items()]
    return Panel(f"K of T = {results.size.steps}", f"{name_of(results, what)}, {where} prompts", {"draft-k": dots})


def figures(results: Results) -> list[str]:
    """Training curves, and the last look over K on every set, by the reward and by the judge."""
    sets = list(results.looks.sets)
    curves = [curve(results, "step", results.spec, where) for where in sets]
    last = [over_k(results, what, where) for what in (results.spec, "judge") for where in sets]
    return [chart(curves, results.out / "curves.png"), chart(last, results.out / "over-k.png")]
