"""`--method auto --budget 100`: the method that gained most for as much, by the table that the recipe auto-table made.

A cell of the table is a budget in evaluations of pocket's images at its T, for rewards with a gradient or without. It is looked
up by how many whole images a budget buys, budget / T: the measured cell of the most that is not above. Nothing is taken from a
cell that has not been measured. Torch-free, but for the counting of costs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tilting.cost import Cost, cost
from tilting.errors import TiltingError
from tilting.presets import METHODS

AUTO = "auto"
TABLE = Path(__file__).parent.parent / "assets" / "auto.json"
STEPS = 25
"""T where it is unset, or the model's own where that is fewer: the table's."""
MOST = 4096
"""What the number of a method is raised to at most."""


@dataclass(frozen=True)
class Budget:
    """What an image may cost: evaluations, or seconds as measured here."""

    amount: float
    timed: bool

    @classmethod
    def read(cls, text: object) -> Budget:
        """Of "100" or "30s". Raises TiltingError."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|)", str(text).strip())
        if found is None or float(found[1]) == 0 or (not found[2] and not found[1].isdigit()):
            raise TiltingError(f"budget must be evaluations per image, such as 100, or seconds, such as 30s, not {str(text)!r}")
        return cls(float(found[1]), bool(found[2]))


@dataclass(frozen=True)
class Choice:
    """What is taken for a budget.

    Attributes:
        method: a preset's name.
        settings: of it, the others at their defaults.
        steps: T.
        cost: of an image.
        why: one line for people.
    """

    method: str
    settings: Mapping[str, Any]
    steps: int
    cost: Cost
    why: str

    @property
    def options(self) -> dict[str, Any]:
        """As `tilting.config.generate.GenerateConfig` takes them."""
        return {"method": self.method, "steps": self.steps, "set": {f"{self.method}.{k}": v for k, v in self.settings.items()}}


@cache
def measured() -> tuple[dict[str, Any], ...]:
    """The cells of the table that have been measured. Raises TiltingError where none has."""
    cells = tuple(cell for cell in json.loads(TABLE.read_bytes())["cells"] if cell["measured"])
    if not cells:
        raise TiltingError("no cell of auto's table has been measured: name a method")
    return cells


def choose(budget: int, steps: int, gradient: bool) -> Choice:
    """The method for a budget of evaluations per image.

    Args:
        budget: of evaluations.
        steps: T of the run.
        gradient: whether the reward has one.

    Raises:
        TiltingError: a budget below one image, and one of less than any cell that was measured.
    """
    if budget < steps:
        raise TiltingError(
            f"a budget of {budget} evaluations is below the {steps} steps of one image: give more, or --steps {max(1, budget)}"
        )
    kind = [cell for cell in measured() if cell["gradient"] == gradient]
    kind = [cell for cell in kind if cell["budget"] / cell["steps"] <= budget / steps + 1e-9]
    if not kind:
        least = min((c["budget"] / c["steps"] for c in measured() if c["gradient"] == gradient), default=None)
        if least is None:
            return _base(steps, f"auto: base, for no cell of {_kind(gradient)} has been measured")
        return _base(
            steps, f"auto: base, for {budget} evaluations buy less than {least:g} images of {steps} steps, the least measured"
        )
    cell = max(kind, key=lambda one: (one["budget"] / one["steps"], -abs(one["steps"] - steps)))
    about = f"at {cell['budget']} evaluations of T = {cell['steps']}"
    if cell["method"] == "base":
        return _base(steps, f"auto: base, for no method gained {about} without the judge's falling, {_kind(gradient)}")
    settings, paid = _spent(cell, budget, steps)
    best = next(one for one in cell["ranked"] if one["method"] == cell["method"])
    number = f"{cell['knob']} {settings[cell['knob']]}"
    nearest = "" if cell["budget"] / cell["steps"] == budget / steps else ", the nearest measured below"
    return Choice(
        cell["method"],
        settings,
        steps,
        paid,
        f"auto: {cell['method']} with {number} at T = {steps}, {paid.evaluations} evaluations an image: of"
        f" {len(cell['ranked'])} methods on {_kind(gradient)} it gained most {about} ({best['gain']:.2g} sd of base{nearest})",
    )


def _base(steps: int, why: str) -> Choice:
    return Choice("base", {}, steps, Cost(steps, 0), why)


def _kind(gradient: bool) -> str:
    return "rewards with a gradient" if gradient else "black-box rewards"


def _spent(cell: Mapping[str, Any], budget: int, steps: int) -> tuple[dict[str, Any], Cost]:
    """The cell's settings with its number raised as far as the budget goes, and what an image costs then."""

    def paid(number: int) -> Cost:
        return cost(METHODS[cell["method"]](**{**cell["settings"], cell["knob"]: number}).build(steps), steps)

    def fits(number: int) -> bool:
        try:
            return paid(number).evaluations <= budget
        except TiltingError:  # less than the method works with
            return True

    number = most(fits)
    return {**cell["settings"], cell["knob"]: number}, paid(number)


def most(fits: Callable[[int], bool], least: int = 1) -> int:
    """The largest number that fits, from one that does on; of what grows, doubled until it does not."""
    low, high = least, 2 * least
    while high <= MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
