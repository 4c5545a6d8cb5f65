"""What there is to know of a method without running it: its preset's attributes, and the text that documents each setting.

A preset's docstring is the one place where a setting is explained (its ``Attributes``); it is read here, so that the command
line and the code cannot say different things. Torch-free.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from tilting.config.settings import fields_of
from tilting.presets import PRESETS

LEGEND = (
    "gradient: of the reward. eta > 0: a stochastic kernel is needed. density: particles can be weighed exactly.",
    "or probes: black-box rewards too, by --set METHOD.probes=10, which costs more. An evaluation is one latent through the",
    "denoiser; a CFG pair counts as one. T steps, N or M particles, G gradient rounds, k clusters, K repeats of a step.",
    "`tilting methods NAME` shows the settings of one, with what its paper used.",
)
"""How to read the table of methods, a line each."""


def documented(kind: type | str) -> tuple[str, list[str], dict[str, str]]:
    """A docstring taken apart.

    Args:
        kind: a class, or its docstring, which has a first sentence, more paragraphs, and ``Attributes:`` ("name: text" or
            "a, b: text").

    Returns:
        The first paragraph, the others, and what is said of each attribute; line breaks of the source are gone.
    """
    head, _, listed = inspect.cleandoc(kind if isinstance(kind, str) else kind.__doc__ or "").partition("\nAttributes:\n")
    first, *more = (" ".join(part.split()) for part in re.split(r"\n\s*\n", head.strip()))
    said: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + inspect.cleandoc(listed).replace("\n", "\n    ").rstrip()):
        names, colon, text = entry.strip().partition(": ")
        if colon:
            said |= dict.fromkeys(names.split(", "), " ".join(text.split()).replace("``", "").removesuffix("."))
    return first, [part for part in more if part], said


def about_method(name: str) -> dict[str, Any]:
    """All that is known of a method, of plain JSON values.

    Args:
        name: one of `tilting.presets.PRESETS`.

    Returns:
        about, more: the docstring's first paragraph and the others; paper; gradient: whether the reward must be
        differentiable; zero_order: whether probes can stand in for that; stochastic: whether eta must be above 0; density:
        whether its proposal has a tractable one; evaluations: per image, as a formula; settings: per field its default,
        ``about``, ``choices`` (empty where any value goes) and, where the paper or its code states it, ``published``;
        published_run: what else it used, such as steps; published_for: what it used instead, by the reward's name or "image".
    """
    kind = PRESETS[name]
    preset, hints = kind(), fields_of(name)
    about, more, said = documented(kind)
    for base in kind.__mro__[1:-1]:  # what a family of presets shares is told once, on its base
        said = documented(base)[2] | said
    settings = {}
    own = vars(kind).get("__annotations__", {})
    for field in sorted(fields(kind), key=lambda f: f.name not in own):
        choices = get_args(hints[field.name]) if get_origin(hints[field.name]) is Literal else ()
        known = {"default": _plain(field.default), "about": said.get(field.name, ""), "choices": list(choices)}
        if field.name in kind.published:
            known["published"] = _plain(kind.published[field.name])
        settings[field.name] = known
    return {
        "about": about, "more": more, "paper": kind.paper, "gradient": preset.climbs, "zero_order": "probes" in settings,
        "stochastic": preset.selects, "density": kind.density, "evaluations": kind.cost, "settings": settings,
        "published_run": {key: _plain(value) for key, value in kind.published.items() if key not in settings},
        "published_for": {case: {k: _plain(v) for k, v in what.items()} for case, what in kind.published_for.items()},
    }  # fmt: skip


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
