"""What there is to know of an objective without running it: paper, gradient, cost, and the text that documents each setting.

Settings and defaults are read from the factories' source, what they are from the docstrings of the classes behind them, so that
the command line and the code cannot say different things. Torch-free.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Any, Literal, get_args, get_origin

from tilting.config.about import documented
from tilting.config.objectives import DENSITY, GRADIENT, factories, source

COSTS = {
    "draft": ("through T steps", "2·T"), "draft-k": ("through K steps", "T + K"), "draft-lv": ("through 1 step", "T + 1 + n"),
    "refl": ("through 1 step", "T - (m - 1)/2"), "alignprop": ("through K steps", "T + K"), "ddpo": ("none", "T + E·(T - 1)"),
    "dpok": ("none", "T + 2·(T - 1)"), "grpo": ("none", "T + E·(T - 1)"), "dpg": ("of the reward", "3·T - 1"),
    "rwr": ("none", "T + J"), "raft": ("none", "T + J/G"), "dpo": ("none", "T + 4·J/G"),
    "adjoint": ("of the reward", "2·T + S·(T - 1)"),
}  # fmt: skip
"""Of each objective what the reward's gradient goes through, and its evaluations per image and training step."""
LEGEND = (
    "gradient: what the reward's goes through; with none it may be a black box. Evaluations are per image and training step:",
    "one is a latent through the denoiser, also where it is made again on the way back; a CFG pair counts as one.",
    "T steps, K k (drawn from 1..T in alignprop), n copies, m last (refl: on average), E epochs, J times, G size, S share;",
    "a kl or eps_kl where none is shown adds evaluations, of the frozen model too.",
    "`tilting objectives NAME` says what the settings of one are; --set OBJECTIVE.FIELD=VALUE changes them.",
)
"""How to read the table of objectives, a line each."""
ELSEWHERE = {"k": "count"}
"""Settings that the class has under another name."""


@cache
def _classes() -> dict[str, str]:
    """Docstrings of the classes behind the objectives, by name."""
    files = sorted(source().parent.glob("*.py"))
    nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    return {node.name: ast.get_docstring(node) or "" for node in nodes if isinstance(node, ast.ClassDef)}


def about_objective(name: str) -> dict[str, Any]:
    """All that is known of an objective, of plain JSON values.

    Args:
        name: one of `tilting.objectives.OBJECTIVES`.

    Returns:
        about, more: what it is, and the class's further paragraphs; paper; gradient: what the reward's gradient goes through,
        ``differentiable``: whether it needs one; density: whether eta must be above 0; evaluations: per image and training
        step, as a formula; settings: per field its default, ``about`` and ``choices`` (empty where any value goes).
    """
    factory = factories()[name]
    first, paper = _parted(factory.about)
    _, more, said = documented(_classes()[factory.made])
    said = documented(_classes()["Truncation"])[2] | said
    settings = {
        field: {
            "default": default, "about": said.get(ELSEWHERE.get(field, field), ""),
            "choices": list(get_args(hint)) if get_origin(hint) is Literal else [],
        }
        for field, (hint, default) in factory.fields.items()
    }  # fmt: skip
    gradient, evaluations = COSTS[name]
    return {
        "about": first, "more": more, "paper": paper, "gradient": gradient, "differentiable": name in GRADIENT,
        "density": name in DENSITY, "evaluations": evaluations, "settings": settings,
    }  # fmt: skip


def _parted(docstring: str) -> tuple[str, str]:
    """What an objective is, and its paper, of "What it is (Authors year)."."""
    text = " ".join(docstring.split()).replace("``", "")
    found = re.fullmatch(r"(.*) \(([^()]*\d{4}[^()]*)\)\.", text)
    return (found[1], found[2]) if found else (text.removesuffix("."), "")
