"""Figs 10, 26 and 27 of DRaFT: a LoRA trained by DRaFT-1, applied only in the last or only in the first M steps of sampling."""

from __future__ import annotations

from tilting_papers.charts import Panel, chart
from tilting_papers.draft.charts import columns, name_of, over
from tilting_papers.draft.claims import Test, gains
from tilting_papers.draft.study import BASE, DRAFT, Claim, Results, Study, Training, Variant, of_fifty
from tilting_papers.numbers import Finding, difference

FIFTY = (2, 5, 10, 20, 30, 40)
"""M of the paper's 50 steps, less all 50, which is the run itself."""


def windows(results: Results) -> list[Variant]:
    """The last M and the first M steps; two of them when small."""
    steps = results.size.steps
    ms = [m for m in dict.fromkeys(of_fifty(m, steps) for m in (FIFTY[::4] if results.small else FIFTY)) if m < steps]
    lora = ((results.lora("draft-1"), 1.0),)
    last = [Variant(f"last-{m}", lora, (steps - m, steps)) for m in ms]
    return last + [Variant(f"first-{m}", lora, (0, m)) for m in ms]


def _rows(results: Results, kind: str) -> list[tuple[int, str]]:
    rows = [(int(name.rpartition("-")[2]), name) for name in results.variants if name.startswith(kind)]
    return [(0, BASE), *rows, (results.size.steps, "draft-1")]


def figures(results: Results) -> list[str]:
    """Reward and judge over M, and the pictures."""
    panels, kinds = [], ("last", "first")
    for what in (results.spec, "judge"):
        series = {f"LoRA in the {kind} M steps": over(results, _rows(results, kind), what) for kind in kinds}
        panels.append(Panel(f"M of T = {results.size.steps}", name_of(results, what), series))
    sheets = []
    for kind in kinds:
        names, title = [(name, f"M {m}") for m, name in _rows(results, kind)], f"a LoRA of DRaFT-1 in the {kind} M steps"
        sheets.append(columns(results, names, results.out / f"{kind}.png", title=title))
    return [chart(panels, results.out / "windows.png"), *sheets]


def more_than_half(kind: str, of: int) -> Test:
    """That more than half of the gain is missing where the LoRA is on in so few of 50 steps."""

    def test(results: Results) -> Finding | None:
        name = f"{kind}-{of_fifty(of, results.size.steps)}"
        if name not in results.names:
            return None
        full, base = gains(results, "draft-1"), results.values(BASE)
        half = {key: base[key] + 0.5 * gain for key, gain in full.items()}
        return difference(half, results.values(name), f"({results.spec}), half of the whole gain - {name}")

    return test


STUDY = Study(
    name="draft-fig10",
    about="a LoRA in the last or the first M sampling steps",
    paper=f"{DRAFT}, Figs 10, 26 and 27",
    title="a LoRA in a part of the sampling steps",
    after="Figs 10, 26 and 27 of Clark et al. 2024",
    runs=(Training("draft-1", "draft-k", k=1),),
    figures=figures,
    variants=windows,
    claims=(
        Claim(
            "what one step trains is not confined to it: in the last 2 of 50 steps the LoRA has less than half of its gain",
            "adaptation does not happen only at the end; 10 to 20 steps are needed",
            more_than_half("last", 2),
        ),
        Claim("nor in the last 10 of 50", "10 to 20 steps are needed for substantial changes", more_than_half("last", 10)),
        Claim(
            "the early steps matter: without the last 40 of 50 steps' LoRA it has less than half of its gain",
            "it is beneficial to apply the LoRA early in sampling",
            more_than_half("first", 10),
        ),
    ),
    notes=("last-M and first-M are the arm draft-1 with its LoRA on in M of the T steps only.",),
)
