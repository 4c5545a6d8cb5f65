"""Rows and prompts that several tables of the CoDeX thesis share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilting_papers.tables import Claim, Row, Size

ANIMALS = tuple(
    f"{'an' if name[0] in 'aeio' else 'a'} {name}"
    for name in (
        "fox", "owl", "cat", "dog", "lion", "tiger", "bear", "panda", "rabbit", "elephant", "giraffe", "zebra", "horse",
        "penguin", "turtle", "octopus", "butterfly", "whale", "frog", "snail",
    )
)  # fmt: skip
"""Twenty animals, no style named: a reward of the image alone asks for what the prompt does not."""

SCENES = (
    "a fox on a green background, noto style", "a sunflower on a pink background, fluent style",
    "a castle on a green background, twemoji style", "a banana on a purple background, noto style",
    "a rocket on a black background, fluent style", "an octopus on a yellow background, twemoji style",
    "a mushroom on a teal background, noto style", "a strawberry on a white background, fluent style",
    "a sailboat on an orange background, twemoji style", "an owl on a gray background, noto style",
    "a cactus on a brown background, fluent style", "a pizza on a red background, twemoji style",
    "a butterfly on a white background, noto style", "a bicycle on a yellow background, fluent style",
    "a tulip on a blue background, twemoji style", "a penguin on an orange background, noto style",
    "a watermelon on a teal background, fluent style", "a bus on a pink background, twemoji style",
    "a tree on a gray background, noto style", "a whale on a green background, fluent style",
)  # fmt: skip
"""Twenty prompts that name all pocket can: concept, background, style."""

ALL, LATE = (1.0, 0.0), (0.6, 0.0)
AESTHETIC_SCHEDULE = (2, 2, 2, 4, 4, 4, 4, 6, 6, 6)
PICKSCORE_SCHEDULE = (2, 6, 6, 2, 2, 2, 4, 4, 6, 6)


def ablation(window: tuple[float, float], tau: float, schedule: tuple[int, ...]) -> tuple[Row, ...]:
    """The rows of Tables 1 and 4: base, CoDe, and CoDeX with each of its parts.

    Args:
        window: t/T inside which CoDeX takes gradients.
        tau: temperature of multinomial selection.
        schedule: N of each tenth of the run.
    """

    def codex(name: str, **settings: Any) -> Row:
        return Row(name, "codex", 4, {"window": window, **settings}, published=name)

    return (
        Row("base", "base", published="base"),
        Row("code-4", "code", 4, published="code-4"),
        Row("code-40", "code", 40, published="code-40"),
        codex("codex-4-greedy"),
        codex("codex-4-multinomial", tau=tau),
        codex("codex-schedule-greedy", schedule=schedule),
        codex("codex-schedule-multinomial", schedule=schedule, tau=tau),
        codex("codex-schedule-multinomial-kmeans", schedule=schedule, tau=tau, gradient_on="medoid"),
        Row("code-equal", "code", equal="codex-4-greedy"),
    )


SCHEDULE_NOTE = (
    "Rows with a schedule of N select every 2 draws, for each of its ten values to be in force at T = 20; the others every 5."
)
ABLATION_CLAIMS = (
    Claim("codex-4-greedy", ("base", "code-4", "code-equal", "code-40"), "CoDeX (N = 4) beats CoDe, even at its evaluations"),
)

RIVALS_SIZE = Size(20, 1, 20, 0)
"""An image of each prompt, for three quarters of the rows back-propagate at every step: half an hour on one core."""
PURE = ("dps", "mpgd", "freedom", "ug", "lgd", "tfg")


CLIP_STRENGTHS: dict[str, dict[str, Any]] = {
    "codex": {"gradient_block": 1, "strength": 0.2}, "dps": {"strength": 0.05}, "mpgd": {"strength": 0.2},
    "freedom": {"strength": 0.4}, "ug": {"strength": 40.0, "rate": 0.05}, "lgd": {"strength": 0.05},
    "tfg": {"rho": 0.025, "mu": 0.025},
}  # fmt: skip
STYLE_STRENGTHS: dict[str, dict[str, Any]] = {
    "codex": {"gradient_block": 1, "strength": 0.05}, "dps": {"strength": 0.05}, "mpgd": {"strength": 0.2},
    "freedom": {"strength": 0.4}, "ug": {"strength": 2.0, "rate": 0.025}, "lgd": {"strength": 0.05},
    "tfg": {"rho": 0.025, "mu": 0.025},
}  # fmt: skip


def rivals(
    window: tuple[float, float], codex: Mapping[str, Any], strengths: Mapping[str, Mapping[str, Any]]
) -> tuple[Row, ...]:
    """The rows of Tables 2 and 3: the gradient methods as the thesis ran them, CoDeX, and all at CoDeX's evaluations.

    Args:
        window: t/T inside which CoDeX takes gradients.
        codex: settings of the thesis' CoDeX row.
        strengths: settings of every gradient method for this reward; the preset's own where it has none.
    """

    def of(method: str, **settings: Any) -> dict[str, Any]:
        return {**strengths.get(method, {}), **settings}

    return (
        Row("base", "base"),
        Row("mpgd", "mpgd", settings=of("mpgd"), published="mpgd"),
        Row("freedom", "freedom", settings=of("freedom", repeat=10), published="freedom"),
        Row("ug", "ug", settings=of("ug", repeat=6), published="ug"),
        Row("codex", "codex", 4, of("codex", window=window, **codex), published="codex"),
        Row("codex-4", "codex", 4, of("codex", window=window)),
        Row("code-4", "code", 4),
        *(
            Row(f"{method}-equal", method, settings=of(method, **({"samples": 2} if method == "lgd" else {})), equal="codex-4")
            for method in ("bon", "code", *PURE)
        ),
    )


RIVALS_CLAIMS = (
    Claim(
        "codex-4", ("code-4", "code-equal", "bon-equal", *(f"{method}-equal" for method in PURE), "freedom", "ug"),
        "CoDeX (N = 4) beats CoDe and every pure gradient method of the same number of evaluations",
    ),
)  # fmt: skip
RIVALS_NOTES = (
    "freedom and ug have the thesis' repeats (10 and 6) in one stream, which is another way to spend about CoDeX's "
    "evaluations; mpgd spends a fraction of them, as it does in the thesis. lgd averages over 2 copies of the estimate.",
)
CLIP_TUNED = (
    "Strengths were tuned on other prompts by codex-strengths-clip, for all alike: the weakest with 99 % of the most gain "
    "whose judge does not fall."
)
STYLE_TUNED = (
    "Strengths were tuned on other prompts by codex-strengths-style, for all alike: the weakest with 99 % of the most gain "
    "whose judge does not fall. The reward has a ceiling, log p = 0, which most methods come near: look at the judge as well."
)
CLIP_NOTE = (
    "The CLIP of CMMD and T-CLIP is the reward's own here: for a view from outside read the judge and the FID-like distance."
)
