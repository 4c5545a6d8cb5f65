"""Fig. 33 of DRaFT: a guidance weight for each step, and a negative prompt for each prompt, learned through the whole chain.

The weights learn 50 times as fast as the LoRA and begin at the model's own scale; the paper's w is our scale less 1.
"""

from __future__ import annotations

from functools import partial

from tilting_papers.draft.arms import Arm, Size
from tilting_papers.draft.claims import higher
from tilting_papers.draft.plots import Panel, chart, curve
from tilting_papers.draft.results import BASE, Claim, Results, Study
from tilting_papers.draft.study import run_study
from tilting_papers.verdicts import Finding

LORA, WITH, ALONE, NEGATIVE = "lora", "lora-guidance", "guidance", "lora-guidance-negative"


def schedules(results: Results) -> dict[str, list[float]]:
    """By arm, the guidance scale of each step, noise first."""
    found = {name: results.points(name)[-1]["guidance"] for name in results.summaries}
    return {name: scales for name, scales in found.items() if scales}


def figures(results: Results) -> list[str]:
    """The learned schedules, and the training curves."""
    series = {name: list(enumerate(scales, 1)) for name, scales in schedules(results).items()}
    cfg = next(iter(results.configs.values())).cfg
    learned = Panel("sampling step", "learned guidance scale", series, line=(cfg, "the model's own"))
    curves = [curve(results, "step", what, results.first) for what in (results.spec, "judge")]
    return [chart([learned, *curves], results.out / "guidance.png")]


def measured(results: Results) -> dict[str, object]:
    """The schedules as a table."""
    rows = [[i + 1, *(f"{scales[i]:.3f}" for scales in schedules(results).values())] for i in range(results.size.steps)]
    return {"Learned guidance scales": {"heads": ["step", *schedules(results)], "rows": rows}}


def varies(results: Results) -> Finding | None:
    """That the learned scale is not one number: its range over the steps is more than a tenth of the scale it began at."""
    found = schedules(results)
    if ALONE not in found:
        return None
    scales, cfg = found[ALONE], results.configs[ALONE].cfg
    wide = max(scales) - min(scales)
    ends = [f"{scale:.3g} at step {scales.index(scale) + 1}" for scale in (min(scales), max(scales))]
    words = " to ".join(ends)
    return {"verdict": "holds" if wide > 0.1 * cfg else "fails", "found": f"from {words}, beginning at {cfg:g}", "range": wide}


STUDY = Study(
    "draft-fig33", "learned guidance weights and negative prompts", "Fig. 33 of Clark et al. 2024",
    arms=(
        Arm(LORA, "draft"), Arm(ALONE, "draft", options={"learn": "guidance"}),
        Arm(WITH, "draft", options={"learn": "lora,guidance"}),
        Arm(NEGATIVE, "draft", options={"learn": "lora,guidance,negative"}, small=False),
    ),
    figures=figures, extra=measured, size=Size(train_steps=80),
    claims=(
        Claim("the learned scale changes over the steps by more than a tenth of what it began at",
              "a schedule without printed values", varies),
        Claim("learned guidance alone raises the reward on held-out prompts", "no figures printed",
              higher(ALONE, BASE, where="held-out")),
        Claim("it adds to a LoRA: with learned guidance the LoRA ends higher", "it did not improve results much at large scale",
              higher(WITH, LORA)),
    ),
    notes=("The claim that something adds is the paper's question; its own answer at large scale was: not much.",),
)  # fmt: skip
run = partial(run_study, STUDY)
