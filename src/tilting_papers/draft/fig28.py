"""Fig. 28 of DRaFT: the norm that gradients are clipped to, for DRaFT-50 and DRaFT-1.

AdamW divides by the gradient's own size, so a clip matters where sizes differ from step to step.
"""

from __future__ import annotations

from tilting_papers.charts import chart
from tilting_papers.draft.charts import curve
from tilting_papers.draft.claims import higher, near
from tilting_papers.draft.study import DRAFT, Claim, Results, Study, Training

CLIPS = (0.001, 0.1, 1.0, 10.0, 1000.0)


def _run(k: int, clip: float) -> Training:
    return Training(f"draft-{k}-c{clip:g}", "draft-k", k=k, clip=clip, small=clip in (CLIPS[0], CLIPS[-1]))


def figures(results: Results) -> list[str]:
    """A panel for each K, a curve for each clip."""
    panels = []
    for k in (1, 50):
        names = [name for name in results.summaries if name.startswith(f"draft-{k}-")]
        panel = curve(results, "step", results.spec, results.first, names)
        series = {f"clip {name.rpartition('-c')[2]}": dots for name, dots in panel.series.items()}
        panels.append(panel._replace(series=series, up=f"DRaFT-{k}: {panel.up}"))
    return [chart(panels, results.out / "clips.png")]


STUDY = Study(
    name="draft-fig28",
    about="the norm that gradients are clipped to",
    paper=f"{DRAFT}, Fig. 28",
    title="gradient clipping",
    after="Fig. 28 of Clark et al. 2024 (PickScore)",
    runs=tuple(_run(k, clip) for k in (1, 50) for clip in CLIPS),
    figures=figures,
    claims=(
        Claim(
            "a small clip helps DRaFT-50: 0.001 ends above 1000",
            "smaller clips improved optimisation substantially",
            higher("draft-50-c0.001", "draft-50-c1000"),
        ),
        Claim(
            "DRaFT-1 does not mind: 0.001 and 1000 end within a tenth of its gain",
            "nearly identical for all clips",
            near("draft-1-c0.001", "draft-1-c1000"),
        ),
    ),
    notes=("Gradient norms before clipping stand in each arm's metrics.jsonl.",),
)
