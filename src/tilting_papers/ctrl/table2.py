"""Zhao et al. 2024, section 6.1 (Fig. 2): four classes of JPEG size, CTRL beside its baselines, at pocket's size."""

from __future__ import annotations

from tilting_papers.ctrl.study import CTRL, Row, Study

STUDY = Study(
    name="ctrl-table2",
    about="four classes of JPEG size: CTRL, guidance and classifier-free fine-tuning from the same labels",
    paper=f"{CTRL}, Fig. 2",
    after="Zhao et al. 2024, section 6.1, Fig. 2",
    rows=(
        Row("base", "base"),
        Row("ctrl-first", "first"),
        Row("ctrl", "ctrl"),
        Row("ctrl-1.5", "ctrl", 1.5, small=False),
        *(Row(f"dps-{gamma}", "dps", gamma, small=gamma in (2, 5)) for gamma in (2, 5, 15, 50)),
        *(Row(f"noisy-{gamma}", "noisy", gamma, small=gamma in (5, 20)) for gamma in (5, 20, 100, 400)),
        *(Row(f"free-{gamma}", "free", gamma, small=gamma == 1) for gamma in (1, 3, 8, 25, 75)),
    ),
    published={"base": "0.43 / 0.45 / 0.13 / 0 per class", "dps, best": "0.69 / 0.45 / 0.13 / 0.53 per class"},
    notes=(
        "The paper: Stable Diffusion 1.5, T = 50, classes cut at -110, -85 and -60 (minus kB), 15 epochs of two updates of 256 "
        "images, a classifier of 10,000 photographs. Its accuracies stand in a figure; those of DPS and of the base model "
        "printed here are from its Table 5, at the best of its strengths for each class, 0 among them.",
        "Ours: classes at quantiles of the base model's own pictures, the smallest files one in twenty; a CNN of the paper's "
        "form with a quarter of its channels, which also learns from three altered copies of every picture, labelled by the "
        "same function: of the pictures alone it learns colours that happen to go with the size, and a control that climbs "
        "it paints them. For the same reason there are two rounds: what a first control draws (ctrl-first, the paper's one "
        "round) is labelled by the function, and the classifier of every other row has learnt from it too. Classifier-free "
        "fine-tuning has the pictures alone.",
    ),
)
