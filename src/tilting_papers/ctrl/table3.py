"""Zhao et al. 2024, section 6.2 (Fig. 3): two labels at once, from two data sets that share no picture, at pocket's size.

Their second label is an aesthetic score; ours is brightness, which like JPEG size is a function of the picture alone. No
picture has both labels: CTRL adds two classifiers (Example 2), classifier-free fine-tuning sees one label at a time.
"""

from __future__ import annotations

from dataclasses import replace

from tilting_papers.ctrl.study import CTRL, FULL, Label, Row, Study, brightness, compressibility

STUDY = Study(
    name="ctrl-table3",
    about="two labels at once, from two data sets that share no picture",
    paper=f"{CTRL}, Fig. 3",
    title="two labels at once from two data sets that share no picture",
    after="Zhao et al. 2024, section 6.2, Fig. 3",
    rows=(
        Row("base", "base"),
        Row("ctrl-first", "first"),
        Row("ctrl", "ctrl"),
        *(Row(f"dps-{gamma}", "dps", gamma, small=gamma in (2, 5)) for gamma in (1, 2, 5, 15, 50)),
        *(Row(f"free-{gamma}", "free", gamma, small=gamma == 1) for gamma in (1, 3, 8, 25, 75)),
    ),
    labels=(
        Label("size", compressibility, (0.7,), "\N{MINUS SIGN}kB", ("large", "small")),
        Label("bright", brightness, (0.7,), "per cent", ("dark", "bright")),
    ),
    size=replace(FULL, data=40),
    published={
        "dps, best": "accuracy, macro F1: compressibility 0.61, 0.55; aesthetic 0.66, 0.62",
        "ctrl": "accuracy, macro F1: compressibility 0.94, 0.94; aesthetic 0.93, 0.92",
    },
    notes=(
        "The paper: compressibility above or below -70 (minus kB), an aesthetic score above or below 5.7, 60 epochs of two "
        "updates of 512 images. Ours: JPEG size and brightness, each cut where 70 % of the base model's pictures lie below.",
        "Two rounds, as in ctrl-table2; the pictures that a first control draws for one label are not those for the other.",
        "Guidance adds the log-likelihoods of both labels, each at the strength of the row.",
    ),
)
