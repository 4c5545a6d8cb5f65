"""`--method auto --budget 100`: the method with the largest gain for a budget, from the table that the recipe auto-table made.

A cell of the table is a budget in evaluations per image of pocket at some T, for rewards with a gradient or without. A budget
is looked up by the number of plain images that it buys, budget / T: the measured cell with the largest such number that is not
above it. Torch-free, except for counting costs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tilting.cost import Cost, cost
from tilting.errors import TiltingError
from tilting.presets import METHODS

AUTO = "auto"
TABLE = Path(__file__).parent.parent / "assets" / "auto.json"
STEPS = 25
"""Default T, that of the table; the model's own if that is smaller."""
MOST = 4096
"""Upper limit of the setting that a budget raises, such as particles."""


@dataclass(frozen=True)
class Budget:
    """What an image may cost: a number of evaluations, or seconds on this machine (``timed``)."""

    amount: float
    timed: bool

    @classmethod
    def read(cls, text: object) -> Budget:
        """Parse "100" or "30s". Raises TiltingError."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|)", str(text).strip())
        if found is None or float(found[1]) == 0 or (not found[2] and not found[1].isdigit()):
            raise TiltingError(f"budget must be evaluations per image, such as 100, or seconds, such as 30s, not {str(text)!r}")
        return cls(float(found[1]), bool(found[2]))


@dataclass(frozen=True)
class Choice:
    """The method chosen for a budget.

    Attributes:
        method: a preset's name.
        settings: its settings that are not at their defaults.
        steps: T.
        cost: cost of an image.
        why: the reason, one line.
    """

    method: str
    settings: Mapping[str, Any]
    steps: int
    cost: Cost
    why: str

    @property
    def options(self) -> dict[str, Any]:
        """The choice as options of `tilting.config.generate.GenerateConfig`."""
        return {"method": self.method, "steps": self.steps, "set": {f"{self.method}.{k}": v for k, v in self.settings.items()}}


@cache
def measured() -> tuple[dict[str, Any], ...]:
    """The cells of the table that have been measured. Raises TiltingError if there are none."""
    cells = tuple(cell for cell in json.loads(TABLE.read_bytes())["cells"] if cell["measured"])
    if not cells:
        raise TiltingError("no cell of auto's table has been measured: name a method")
    return cells


Unfit = Callable[[str, Mapping[str, Any]], str | None]
"""(method, settings) -> why it cannot be used here, or None."""


def choose(budget: int, steps: int, gradient: bool, unfit: Unfit = lambda method, settings: None) -> Choice:
    """The method for a budget of evaluations per image.

    Args:
        budget: evaluations per image.
        steps: T of the run.
        gradient: whether the reward is differentiable.
        unfit: says why a method cannot be used; called for the usable methods of a cell by decreasing gain. If no method that
            uses a gradient passes, those for black-box rewards are tried.

    Raises:
        TiltingError: the budget is less than one image.
    """
    if budget < steps:
        raise TiltingError(
            f"a budget of {budget} evaluations is below the {steps} steps of one image: give more, or --steps {max(1, budget)}"
        )
    passed: dict[str, str] = {}
    choice = None
    for kind in (True, False) if gradient else (False,):
        choice = choice or _best(budget, steps, kind, unfit, passed)
    choice = choice or _base(steps, "auto: base, for no method of the table can be used here")
    told = "; ".join(f"not {method}, for {why.partition(': ')[0]}" for method, why in passed.items())
    return replace(choice, why=f"{choice.why}; {told}") if told else choice


def _best(budget: int, steps: int, gradient: bool, unfit: Unfit, passed: dict[str, str]) -> Choice | None:
    """The best fitting method of the nearest cell for a kind of reward; None if ``unfit`` rejects all. Rejections are added to
    ``passed``."""
    kind = [cell for cell in measured() if cell["gradient"] == gradient]
    if not kind:
        return _base(steps, f"auto: base, for no cell of {_kind(gradient)} has been measured")
    least = min(cell["budget"] / cell["steps"] for cell in kind)
    kind = [cell for cell in kind if cell["budget"] / cell["steps"] <= budget / steps + 1e-9]
    if not kind:
        return _base(
            steps, f"auto: base, for {budget} evaluations buy less than {least:g} images of {steps} steps, the least measured"
        )
    cell = max(kind, key=lambda one: (one["budget"] / one["steps"], -abs(one["steps"] - steps)))
    about = f"at {cell['budget']} evaluations of T = {cell['steps']}"
    usable = [one for one in cell["ranked"] if one["usable"]]
    if not usable:
        return _base(steps, f"auto: base, for no method gained {about} without the judge's falling, {_kind(gradient)}")
    nearest = "" if cell["budget"] / cell["steps"] == budget / steps else ", the nearest measured below"
    for one in usable:
        settings, paid = _spent(one, budget, steps)
        why = unfit(one["method"], settings)
        if why is None:
            (knob,) = one["number"]
            told = f"auto: {one['method']} with {knob} {settings[knob]} at T = {steps}, {paid.evaluations} evaluations an image"
            told += f": of {len(cell['ranked'])} methods on {_kind(gradient)} it gained most {about}"
            return Choice(one["method"], settings, steps, paid, f"{told} ({one['gain']:.2g} sd of base{nearest})")
        passed[one["method"]] = why
    return None


def _base(steps: int, why: str) -> Choice:
    return Choice("base", {}, steps, Cost(steps, 0), why)


def _kind(gradient: bool) -> str:
    return "rewards with a gradient" if gradient else "black-box rewards"


def _spent(one: Mapping[str, Any], budget: int, steps: int) -> tuple[dict[str, Any], Cost]:
    """A method's settings with its scalable setting raised as far as the budget allows, and the resulting cost."""
    (knob,) = one["number"]

    def paid(number: int) -> Cost:
        return cost(METHODS[one["method"]](**{**one["settings"], knob: number}).build(steps), steps)

    def fits(number: int) -> bool:
        try:
            return paid(number).evaluations <= budget
        except TiltingError:  # less than the method works with
            return True

    number = most(fits)
    return {**one["settings"], knob: number}, paid(number)


def most(fits: Callable[[int], bool], least: int = 1) -> int:
    """The largest number up to `MOST` that fits, by doubling and bisection from ``least``, which fits."""
    low, high = least, 2 * least
    while high <= MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
