"""Recipes: reproducible experiments, each one command. Torch-free to import.

    RECIPES = {"mine": Recipe(name="mine", about="...", paper="...", measure=function)}

A recipe is declared in its own module. `Recipe.run` checks the folder, calls ``measure``, which makes what is missing and
measures everything, and writes table.json and, through ``page``, table.md. Each paper's recipes are a subclass with more fields
(`codex.table.Table`, `draft.study.Study`, `ctrl.study.Study`) and have the ``measure`` and ``page`` of that paper.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from tilting import __version__
from tilting.disk import write_atomically
from tilting.errors import TiltingError
from tilting.metrics.verdict import TOO_FEW
from tilting.rewards.spec import parse_specs
from tilting.runs.files import write_json
from tilting.runs.lock import exclusive
from tilting.runs.owner import RECIPE, folder_of
from tilting_papers.page import plain_page

Say = Callable[[str], None]
"""Prints a line of progress."""
Report = dict[str, Any]
"""Contents of table.json."""


def later(target: str) -> Callable[..., Any]:
    """The function "module:name" of this package, imported when it is called, so that declarations load nothing heavy."""

    def call(*arguments: Any, **options: Any) -> Any:
        module, _, name = target.partition(":")
        return getattr(import_module(f"tilting_papers.{module}"), name)(*arguments, **options)

    return call


POCKET = "pocket"


class OfPocket(str):
    """A note that holds of model pocket alone."""


def noted(notes: Sequence[str], model: str) -> tuple[str, ...]:
    """The notes that hold of a model; of another than pocket, that nothing was tuned or is judged there."""
    kept = tuple(note for note in notes if model == POCKET or not isinstance(note, OfPocket))
    other = f"No setting was tuned on {model}, and it has no held-out judge: whether a reward was gamed is not told."
    return kept if model == POCKET else (*kept, other)


def units_of(specs: Sequence[str]) -> dict[str, str]:
    """The unit of each reward by spec, "" of one's own."""
    return {spec.text: spec.entry.units if spec.entry else "" for spec in parse_specs(specs)}


PARTED = "The first two thirds of the prompts are trained on, the others are held out."


def parted(recipe: str, prompts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts to train on and to hold out. Raises TiltingError: too few of them."""
    several = tuple(dict.fromkeys(prompts))
    if len(several) < 2:
        raise TiltingError(f"{recipe} needs at least 2 prompts: two thirds are trained on, the others held out")
    cut = max(1, round(2 * len(several) / 3))
    return several[:cut], several[cut:]


@dataclass(frozen=True)
class Run:
    """One run of a recipe.

    Attributes:
        recipe: the recipe.
        out: the folder to write, or to resume.
        small: the minimal version.
        say: prints lines of progress.
        seed: seed of sampling and training; ignored by a recipe with its own seeds.
        quiet: no progress bars.
        shard: (i, k), the i-th of k parts of the work, from 1; None for all of it.
        asked: overridden settings of the recipe, plain values by option.
    """

    recipe: Any
    out: Path
    small: bool
    say: Say
    seed: int = 0
    quiet: bool = True
    shard: tuple[int, int] | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def argv(self) -> list[str]:
        """The command line, which the manifests of its run folders record."""
        small = ["--small"] if self.small else []
        return ["tilting", "recipe", self.recipe.name, "--out", str(self.out), *small, "--seed", str(self.seed)]

    @property
    def model(self) -> str:
        """The model that is asked for."""
        return self.asked.get("model", POCKET)

    @property
    def opening(self) -> Report:
        """What every report opens with."""
        recipe, seed = self.recipe, self.seed if self.recipe.seeded else None
        about = {"recipe": recipe.name, "version": __version__, "title": recipe.heading}
        about |= {"paper": recipe.after or recipe.paper, "small": self.small, "seed": seed, "notes": list(recipe.notes)}
        return about | ({"asked": dict(self.asked)} if self.asked else {})

    def share(self, minutes: Mapping[str, float]) -> list[str]:
        """The parts of the work that this shard makes, given the minutes of each: the longest first, each to the shard with the
        least work so far. Results of other shards count as done once their files are copied into the folder."""
        mine, (i, k) = [], self.shard or (1, 1)
        loads = [0.0] * k
        for name in sorted(minutes, key=lambda name: -minutes[name]):
            least = loads.index(min(loads))
            loads[least] += minutes[name]
            mine += [name] if least == i - 1 else []
        total, longest = sum(minutes.values()), max(loads)
        about = f"about {total:.0f} min if idle, {k} shard(s) of at most {longest:.0f}; {len(mine)} here"
        about = about if self.model == POCKET else f"{k} shard(s); {len(mine)} here"
        self.say(f"{len(minutes)} parts, {about}")
        return [name for name in minutes if name in mine]

    def check(self) -> None:
        """Check the folder before anything is drawn.

        Raises:
            TiltingError: it holds another recipe, size, seed or setting, or anything else, or cannot be written.
        """
        file = folder_of(str(self.out), RECIPE) / "table.json"
        before = json.loads(file.read_bytes()) if file.exists() else {}
        for key in ("recipe", "small", "seed", "asked"):
            now = self.opening.get(key)
            if before and before.get(key) != now and key == "asked":
                raise TiltingError(f"{str(self.out)!r} holds a recipe of another setting: choose another --out")
            if before and before.get(key) != now:
                was = f"({before.get(key)} there, {now} now)"
                raise TiltingError(f"{str(self.out)!r} holds a recipe with another {key} {was}: choose another --out")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment.

    Attributes:
        name: name on the command line.
        about: one line for the list, and the page's title without a ``title``.
        paper: its source for the list, and for the page without an ``after``.
        measure: makes what is missing of a run and measures it; returns the report's entries besides `Run.opening`.
        page: renders table.md from the report.
        seeded: whether ``--seed`` is allowed.
        sharded: whether ``--shard`` is allowed (`Run.share`).
        notes: sentences for the reader.
        asks: which of model, reward, prompts, seeds and steps may be overridden.
    """

    name: str
    about: str
    paper: str
    measure: Callable[[Run], Report]
    page: Callable[[Report], str] = plain_page
    title: str = ""
    after: str = ""
    seeded: bool = True
    sharded: bool = False
    notes: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """The page's title."""
        return self.title or self.about

    def otherwise(self, asked: Mapping[str, Any]) -> Self:
        """The recipe with overridden settings, which are among its ``asks``."""
        raise NotImplementedError

    def run(
        self,
        out: Path,
        small: bool,
        say: Say,
        seed: int = 0,
        quiet: bool = True,
        shard: tuple[int, int] | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> Report:
        """Make what is missing of the recipe and return its report; for a shard, a report of what exists so far.

        Args: see `Run`.

        Raises:
            TiltingError: as `Run.check`.
        """
        run = Run(self.otherwise(asked) if asked else self, out, small, say, seed, quiet, shard, asked or {})
        with exclusive(str(out)):
            run.check()
            report = {**run.opening, **self.measure(run)}
            page = self.page(undecided(report) if small else report)
            write_atomically(out / "table.md", (page + "\n").encode())
            write_json(out / "table.json", report)
            return report


def undecided(report: Any) -> Any:
    """The report of a small run without verdicts, since its numbers mean nothing."""
    if isinstance(report, list):
        return [undecided(one) for one in report]
    if not isinstance(report, Mapping):
        return report
    said = {"verdict": TOO_FEW, "judge_falls": None}
    return {key: said[key] if key in said and value is not None else undecided(value) for key, value in report.items()}
