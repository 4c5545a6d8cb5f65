"""Fig. 33 of DRaFT: a guidance weight for each step, and a negative prompt for each prompt, learned through the whole chain.

The weights learn 50 times as fast as the LoRA and begin at the model's own scale; the paper's w is our scale less 1.
"""

from __future__ import annotations

from typing import Any

from tilting_papers.charts import Panel, chart
from tilting_papers.draft.charts import curve
from tilting_papers.draft.claims import higher
from tilting_papers.draft.study import BASE, DRAFT, Claim, Results, Size, Study, Training
from tilting_papers.numbers import Finding

LORA, WITH, ALONE, NEGATIVE = "lora", "lora-guidance", "guidance", "lora-guidance-negative"


def schedules(results: Results) -> dict[str, list[float]]:
    """By training run, the guidance scale of each step, noise first."""
    last = {name: results.points(name)[-1]["guidance"] for name in results.summaries}
    return {name: scales for name, scales in last.items() if scales}


def figures(results: Results) -> list[str]:
    """The learned schedules, and the training curves."""
    series = {name: list(enumerate(scales, 1)) for name, scales in schedules(results).items()}
    cfg = next(iter(results.configs.values())).cfg
    learned = Panel("sampling step", "learned guidance scale", series, line=(cfg, "the model's own"))
    curves = [curve(results, "step", what, results.first) for what in (results.spec, "judge")]
    return [chart([learned, *curves], results.out / "guidance.png")]


def measured(results: Results) -> dict[str, Any]:
    """The schedules as a table."""
    rows = [[i + 1, *(f"{scales[i]:.3f}" for scales in schedules(results).values())] for i in range(results.size.steps)]
    return {"Learned guidance scales": {"heads": ["step", *schedules(results)], "rows": rows}}


def varies(results: Results) -> Finding | None:
    """That the learned scale is not one number: its range over the steps is more than a tenth of the scale it began at."""
    scales = schedules(results).get(ALONE)
    if scales is None:
        return None
    cfg, wide = results.configs[ALONE].cfg, max(scales) - min(scales)
    ends = [f"{scale:.3g} at step {scales.index(scale) + 1}" for scale in (min(scales), max(scales))]
    words = f"from {' to '.join(ends)}, beginning at {cfg:g}"
    return {"verdict": "holds" if wide > 0.1 * cfg else "fails", "found": words, "range": wide}


STUDY = Study(
    name="draft-fig33",
    about="learned guidance weights and negative prompts",
    paper=f"{DRAFT}, Fig. 33",
    after="Fig. 33 of Clark et al. 2024",
    runs=(
        Training(LORA, "draft"),
        Training(ALONE, "draft", options={"learn": "guidance"}),
        Training(WITH, "draft", options={"learn": "lora,guidance"}),
        Training(NEGATIVE, "draft", options={"learn": "lora,guidance,negative"}, small=False),
    ),
    figures=figures,
    extra=measured,
    size=Size(train_steps=80),
    claims=(
        Claim(
            "the learned scale changes over the steps by more than a tenth of what it began at",
            "a schedule without printed values",
            varies,
        ),
        Claim(
            "learned guidance alone raises the reward on held-out prompts",
            "no figures printed",
            higher(ALONE, BASE, where="held-out"),
        ),
        Claim(
            "it adds to a LoRA: with learned guidance the LoRA ends higher",
            "it did not improve results much at large scale",
            higher(WITH, LORA),
        ),
    ),
    notes=("The claim that something adds is the paper's question; its own answer at large scale was: not much.",),
)
