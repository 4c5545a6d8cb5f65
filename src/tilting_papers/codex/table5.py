"""Table 5 of the CoDeX thesis: text and picture to picture.

SDEdit with r = .6 from three reference pictures, and CoDe and CoDeX on it with a reward of image and prompt (``clip`` for
PickScore). γ = .4 and a gradient every second step, as there.
"""

from __future__ import annotations

from functools import partial

from tilting_papers.rows import ALL, CLIP_NOTE, SCENES
from tilting_papers.tables import Claim, Row, Size, Table, run_table

SOURCES = (
    "a rose on an orange background, twemoji style", "a house on a purple background, noto style",
    "a parrot on a black background, fluent style",
)  # fmt: skip
"""Pictures that the model draws itself, to start from."""
R = 0.6
CODEX = {"window": ALL, "strength": 0.4, "gradient_block": 2}

TABLE = Table(
    "codex-table5", "text and picture to picture", "Table 5 of the CoDeX thesis ((T+I)2I, PickScore)",
    prompts=SCENES, reward=("clip",), units={"clip": "raw cosine"}, sources=SOURCES, size=Size(20, 2, 20, 3),
    rows=(
        Row("base", "base"),
        Row("sdedit", "sdedit", strength=R, published="sdedit"),
        Row("code-4", "code", 4, strength=R, published="code-4"),
        Row("code-40", "code", 40, strength=R, published="code-40"),
        Row("codex-4-greedy", "codex", 4, CODEX, strength=R, published="codex-4-greedy"),
        Row("codex-4-multinomial", "codex", 4, {**CODEX, "tau": 0.0003}, strength=R, published="codex-4-multinomial"),
        Row("code-equal", "code", equal="codex-4-greedy", strength=R),
    ),
    against=("sdedit", "code-4"), published="codex-table5", published_unit="PickScore, raw cosine",
    claims=(Claim("codex-4-greedy", ("sdedit", "code-4", "code-equal", "code-40"), "CoDeX (N = 4) beats CoDe from a picture"),),
    notes=(
        CLIP_NOTE,
        "base draws from noise and has no reference; I-Gram is the cosine of pocket-clip's image embeddings (the published "
        "code has CLIP RN50's), and the rms of pixels is beside it because no network has a part in it.",
    ),
)  # fmt: skip
run = partial(run_table, TABLE)
