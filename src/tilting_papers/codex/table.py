"""A table of the CoDeX thesis as data: rows are requests of `tilting generate`, scored by the table's rewards. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from tilting.config.recipe import OTHERWISE
from tilting.errors import TiltingError
from tilting.rewards.spec import split_weight
from tilting_papers.recipe import POCKET, Recipe, Report, Run, later, noted, units_of

THESIS = "the CoDeX thesis"
ALL, LATE = (1.0, 0.0), (0.6, 0.0)
"""Windows of t/T in which gradients are taken."""
CLIP_NOTE = (
    "The CLIP of CMMD and T-CLIP is the reward's own here: for a view from outside read the judge and the FID-like distance."
)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: name of the row and of its run folder.
        method: a preset.
        particles: N; None is the preset's default, or follows from ``equal``.
        settings: other fields of the preset.
        published: the paper's row to print beside it.
        equal: another row, whose evaluations per image this row is given by raising its particles (rounded up).
        reward: overrides the table's.
        strength: r of SDEdit, from every reference picture of the table; None starts from noise.
        small: whether ``--small`` includes it.
    """

    name: str
    method: str
    particles: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    published: str | None = None
    equal: str | None = None
    reward: tuple[str, ...] | None = None
    strength: float | None = None
    small: bool = True


@dataclass(frozen=True)
class Claim:
    """The claim that one row has a higher reward than its rivals, without a judge below that of base."""

    winner: str
    rivals: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Size:
    """Sample sizes: number of prompts, images of each, T, and number of reference pictures."""

    prompts: int
    images: int
    steps: int
    references: int


SMALL = Size(prompts=2, images=1, steps=6, references=1)
FEWER = {"particles": {4: 2, 40: 3}, "probes": {10: 2, 50: 3}, "repeat": {6: 2, 10: 2}}
"""Values that ``--small`` replaces, by setting; entries of a schedule become 2 or 3."""


def shrink(name: str, value: Any) -> Any:
    """A setting's value under ``--small``."""
    if name == "schedule":
        return tuple(min(n, 2 if n < 6 else 3) for n in value[::2])  # ten parts do not fit its six steps
    return FEWER.get(name, {}).get(value, value)


MEASURE, PAGE = later("codex.measure:measure"), later("codex.page:markdown")


@dataclass(frozen=True, kw_only=True)
class Table(Recipe):
    """A table of the thesis on model pocket; in addition to `Recipe`:

    Attributes:
        prompts: prompts of all rows.
        reward: specs that score every row, and steer it unless it has its own.
        units: unit of each reward, by spec without weight.
        rows: its rows, "base" among them.
        against: rows that every other row is compared with, paired by image.
        published: its key in published.yaml, and the unit of the published reward.
        size: sample sizes of the full run.
        claims: claims to test.
        sources: prompts of the reference pictures of SDEdit rows, which the model draws itself.
        figure: "rows" (a line for each), "pareto" (two rewards), "strength" (reward over distance to the reference) or "sweep"
            (the judge over the reward, by strength).
        total: name of the weighted sum of the rewards, if claims are about it; its unit is in ``units``.
        tuned: a table of strengths, made first in DIR/tuning on other prompts; rows get the strengths it chooses.
        near: of such a table, the share of the largest usable gain that the chosen (weakest) strength must reach.
        model: the model to sample from.
        tiny: sample sizes of ``--small``.
        seeds: seeds of sampling; empty for that of the run.
        facts: computes further numbers to print beside published ones, as {what, ours, published}.
    """

    measure: Callable[[Run], Report] = MEASURE
    page: Callable[[Report], str] = PAGE
    prompts: tuple[str, ...]
    reward: tuple[str, ...]
    units: Mapping[str, str]
    rows: tuple[Row, ...]
    against: tuple[str, ...] = ("base",)
    published: tuple[str | None, str] = (None, "")
    size: Size = Size(20, 4, 20, 3)
    claims: tuple[Claim, ...] = ()
    sources: tuple[str, ...] = ()
    figure: Literal["rows", "pareto", "strength", "sweep"] = "rows"
    total: str = ""
    tuned: Table | None = None
    near: float = 0.99
    sharded: bool = True
    model: str = "pocket"
    tiny: Size = SMALL
    seeds: tuple[int, ...] = ()
    asks: tuple[str, ...] = OTHERWISE
    facts: Callable[[Report], list[dict[str, Any]]] = lambda report: []

    def otherwise(self, asked: Mapping[str, Any]) -> Self:
        """The same rows and claims with another model, reward, prompts, seeds or steps.

        Raises:
            TiltingError: for another reward where rows have rewards of their own.
        """
        changed: dict[str, Any] = {key: tuple(asked[key]) for key in ("prompts", "seeds") if key in asked}
        if asked.get("model", POCKET) != POCKET:
            changed |= {
                "model": asked["model"],
                "notes": noted(self.notes, asked["model"]),
                "published": (None, ""),
                "tuned": None,
            }
        if "prompts" in asked:
            changed["size"] = replace(self.size, prompts=len(asked["prompts"]))
        if "steps" in asked:
            changed["size"] = replace(changed.get("size", self.size), steps=asked["steps"])
            changed["tiny"] = replace(self.tiny, steps=asked["steps"])
        if "reward" in asked:
            if self.total or any(row.reward for row in self.rows):
                raise TiltingError(f"rows of {self.name} have rewards of their own: leave --reward out")
            units = {split_weight(spec)[0]: unit for spec, unit in units_of(asked["reward"]).items()}
            changed |= {"reward": tuple(asked["reward"]), "units": units}
        if self.tuned is not None and "tuned" not in changed:  # on prompts and a seed of its own
            changed["tuned"] = self.tuned.otherwise({key: asked[key] for key in asked if key in ("reward", "steps")})
        return replace(self, **changed)
