"""The term that `--diversity` asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tilting.config.diversity import parse_diversity

if TYPE_CHECKING:
    from tilting.training.dissimilarity import Measure


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


def diversity(text: str) -> Diversity:
    """The term that a spec asks for. Raises TiltingError."""
    name, argument, weight = parse_diversity(text)
    return Diversity(weight, _measure(name, argument), name if argument is None else f"{name}:{argument}")


def _measure(name: str, argument: str | None) -> Measure:
    from tilting.training.dissimilarity import root_mean_square

    if name == "euclid":
        return root_mean_square
    from tilting.rewards import diversity as reward

    space: Any = reward(argument).space
    if name == "lpips":
        return space

    def embedded(a, b):
        return (space.image(a) - space.image(b)).square().sum(1).add(1e-12).sqrt()

    return embedded
