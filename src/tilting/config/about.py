"""Description of a method for lists and docs: what its preset declares, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from tilting.config.generate import STRENGTH
from tilting.cost import cost
from tilting.declare import declared, paragraphs, plain
from tilting.presets import METHODS

STEPS = 50
"""T of the run whose evaluations are listed."""
LEGEND = (
    "gradient: of the reward. eta > 0: a stochastic kernel is needed. density: particles can be weighed exactly.",
    "or probes: black-box rewards too, by --set METHOD.probes=10, which costs more. An evaluation is one latent through the",
    f"denoiser, a CFG pair counts as one; told are those of an image at {STEPS} steps with default settings.",
    "`tilting methods NAME` shows the settings of one, with what its paper used.",
)
"""How to read the table of methods."""


def of_few(row: Mapping[str, Any]) -> str:
    """A sentence on how often a selecting method selects in the few steps of a distilled model."""
    never = "" if 0 not in row["few"] else f"; where it never does it is {row['without']}"
    return f"At T = 1, 2, 3 and 4 it selects {', '.join(map(str, row['few'][:-1]))} and {row['few'][-1]} times{never}."


def about_method(name: str) -> dict[str, Any]:
    """Describe a method in plain JSON values.

    Args:
        name: one of `tilting.presets.METHODS`.

    Returns:
        about, more: the docstring's first paragraph and the others, pseudo-code among them; paper; gradient: whether the reward
        must be differentiable; zero_order: whether probes can stand in for that; stochastic: whether eta must be above 0;
        density: whether its proposal has a tractable one; evaluations: per image, at `STEPS` steps with default settings;
        at_most: whether it may take fewer; few: for a method that needs eta above 0, its number of selections in runs of 1, 2,
        3 and 4 steps; without: the method it is equivalent to without any; settings: per field its default, ``about``,
        ``choices`` (empty if any value is allowed) and, if the paper or its code states it, ``published``; published_run: what
        else the paper used, such as steps; published_for: what it used instead, by the reward's name or "image".
    """
    kind = METHODS[name]
    preset, known = kind(), declared(kind)
    about, *more = paragraphs(kind)
    settings = {}
    for field, one in known.items():
        default = None if one.default is MISSING else plain(one.default)
        settings[field] = {
            "default": default,
            "about": one.about.replace("``", "").removesuffix("."),
            "choices": list(one.choices),
        }
        if field in kind.published:
            settings[field]["published"] = plain(kind.published[field])
    steps = max(1, round(STRENGTH * STEPS)) if kind.needs_picture else STEPS
    method = preset.build(steps)
    return {
        "about": about,
        "more": more,
        "paper": kind.paper,
        "gradient": preset.needs_reward_gradient,
        "zero_order": "probes" in settings,
        "stochastic": preset.selects,
        "density": kind.density,
        "evaluations": cost(method, steps).evaluations,
        "at_most": method.engine is not None and method.engine.may_cost_less,
        "few": [preset.build(few).choices(few) for few in range(1, 5)] if preset.selects else [],
        "without": method.without_choices,
        "settings": settings,
        "published_run": {key: plain(value) for key, value in kind.published.items() if key not in settings},
        "published_for": plain(kind.published_for),
    }
