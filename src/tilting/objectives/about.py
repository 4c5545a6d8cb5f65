"""Description of an objective for lists and docs: what it declares, and what it costs (which needs torch)."""

from __future__ import annotations

from typing import Any

from tilting.declare import declared, paragraphs, plain
from tilting.objectives import OBJECTIVES
from tilting.objectives.cost import STEPS, cost_of

LEGEND = (
    "gradient: what the reward's goes through; with none it may be a black box. Evaluations and reward calls are those of an",
    f"image and training step as the objective is unset, counted at T = {STEPS}; ~ is a mean, where it draws how much it does.",
    "One evaluation is a latent through the denoiser, also where it is made again on the way back; a CFG pair counts as one.",
    "`tilting objectives NAME` says how one goes and what its settings are; --set OBJECTIVE.FIELD=VALUE changes them.",
)
"""How to read the table of objectives."""


def about_objective(name: str) -> dict[str, Any]:
    """All that is known of an objective, of plain JSON values.

    Args:
        name: one of `tilting.objectives.OBJECTIVES`.

    Returns:
        about, more: what it is, and further paragraphs, pseudo-code among them; paper; gradient: what the reward's gradient
        goes through, ``differentiable``: whether it needs one; density: whether eta must be above 0 as it is unset;
        evaluations, reward_calls: per image and training step at ``counted_at`` steps, means where they are ``drawn``;
        settings: per field its default, ``about``, ``choices`` (empty where any value goes) and former names.
    """
    kind = OBJECTIVES.find(name)
    objective = kind()
    first, *more = paragraphs(kind)
    cost = cost_of(objective)
    return {
        "about": first.removesuffix("."),
        "more": more,
        "paper": kind.paper,
        "gradient": objective.through or ("of the reward" if objective.needs_gradient else "none"),
        "differentiable": objective.needs_gradient,
        "density": objective.needs_density,
        "eta": objective.default_eta,
        "group_size": objective.group_size,
        "evaluations": cost.evaluations,
        "reward_calls": cost.reward_calls,
        "drawn": cost.drawn,
        "counted_at": STEPS,
        "settings": {
            field: {"default": plain(one.default), "about": one.about.replace("``", ""), "choices": list(one.choices)}
            for field, one in declared(kind).items()
        },
    }
