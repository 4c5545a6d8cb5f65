"""Fig. 9 of DRaFT: K = 1, 5, 10, 30, 50 on a reward of the image alone; ``style``, log p(noto | image), for the aesthetic
score."""

from __future__ import annotations

from functools import partial

from tilting_papers.draft.claims import falls
from tilting_papers.draft.k import CLAIMS, UNPUBLISHED, figures
from tilting_papers.draft.results import Claim, Study
from tilting_papers.draft.study import run_study

STUDY = Study(
    "draft-fig9", "how many steps carry gradient, on a reward of the image alone",
    "Fig. 9 of Clark et al. 2024 (aesthetic score)",
    arms=UNPUBLISHED, figures=figures, reward=("style",), units={"style": "log p of noto, nats"},
    claims=(
        *CLAIMS,
        Claim("the judge falls under DRaFT-1, for the reward says nothing of the prompt",
              "methods first improve images and then collapse to very similar ones of high reward", falls("draft-1")),
    ),
    notes=("Names carry the paper's K of 50; the column K is ours.",),
)  # fmt: skip
run = partial(run_study, STUDY)
