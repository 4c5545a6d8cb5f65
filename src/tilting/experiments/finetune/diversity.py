"""`--diversity MEASURE[=WEIGHT]`: euclid, clip, or lpips:VGG[#LPIPS]. Importing this does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError, nearest

if TYPE_CHECKING:
    from tilting.finetune.diversity import Measure

MEASURES = {
    "euclid": "root mean square difference of pixels", "clip": "distance of pocket-clip's embeddings",
    "lpips": "LPIPS by the weights of lpips:VGG[#LPIPS]",
}  # fmt: skip


@dataclass(frozen=True)
class Diversity:
    """The term w d(x_i, x_{b-1-i}) of a run.

    Attributes:
        weight: w, in the reward's units over those of d; below 0 it draws images together.
        measure: d.
        name: of it.
    """

    weight: float
    measure: Measure = field(repr=False, compare=False)
    name: str = "euclid"


def parse_diversity(text: str) -> tuple[str, str | None, float]:
    """(measure, its argument or None, weight) of MEASURE[:ARGUMENT][=WEIGHT]; the weight is 1 where it is left out.

    Raises:
        TiltingError: naming what is wrong.
    """
    body, equals, tail = text.rpartition("=")
    weight = 1.0
    if equals:
        try:
            weight = float(tail)
        except ValueError:
            raise TiltingError(f"the weight in the diversity {text!r} must be a number, not {tail!r}") from None
        if not math.isfinite(weight):
            raise TiltingError(f"the weight in the diversity {text!r} must be finite")
    name, colon, argument = (body if equals else text).partition(":")
    if name not in MEASURES:
        raise TiltingError(f"there is no diversity measure {name!r}{nearest(name, MEASURES)}")
    if bool(colon and argument) != (name == "lpips"):
        wrong = "needs VGG16's weights: lpips:VGG[#LPIPS]" if name == "lpips" else f"takes no argument, such as {argument!r}"
        raise TiltingError(f"the diversity measure {name} {wrong}")
    return name, argument or None, weight


def diversity(text: str) -> Diversity:
    """The term that a spec asks for. Raises TiltingError."""
    name, argument, weight = parse_diversity(text)
    return Diversity(weight, _measure(name, argument), name if argument is None else f"{name}:{argument}")


def _measure(name: str, argument: str | None) -> Measure:
    from tilting.finetune.diversity import root_mean_square

    if name == "euclid":
        return root_mean_square
    from tilting.rewards.diversity import diversity as reward

    space: Any = reward(argument).space
    if name == "lpips":
        return space

    def embedded(a, b):
        return (space.image(a) - space.image(b)).square().sum(1).add(1e-12).sqrt()

    return embedded
