"""What a recipe is, and the one engine that makes any of them. Torch-free to import.

    RECIPES = {"mine": Recipe(name="mine", about="...", paper="...", measure=function)}

A recipe is declared once, in its own module. `Recipe.run` refuses a folder that holds something else, lets ``measure`` make
what is missing and measure all of it, and writes table.json and, by ``page``, table.md. The papers' recipes have more fields
(`codex.table.Table`, `draft.study.Study`, `ctrl.study.Study`), and ``measure`` and ``page`` of their paper.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

from tilting import __version__
from tilting.disk import write_atomically
from tilting.errors import TiltingError
from tilting.metrics.verdict import TOO_FEW
from tilting.runs.files import write_json
from tilting.runs.lock import exclusive
from tilting.runs.owner import RECIPE, folder_of
from tilting_papers.page import plain_page

Say = Callable[[str], None]
"""Takes a line of progress."""
Report = dict[str, Any]
"""What table.json holds."""


def later(target: str) -> Callable[..., Any]:
    """The function "module:name" of this package, imported when it is called: declarations load nothing heavy."""

    def call(*arguments: Any, **options: Any) -> Any:
        module, _, name = target.partition(":")
        return getattr(import_module(f"tilting_papers.{module}"), name)(*arguments, **options)

    return call


@dataclass(frozen=True)
class Run:
    """One making of a recipe.

    Attributes:
        recipe: which.
        out: the folder to write, or to go on with.
        small: as little of it as makes a table.
        say: takes lines of progress.
        seed: of what is drawn and trained; a recipe with seeds of its own leaves it alone.
        quiet: no bars within a part.
        shard: (i, k), the i-th of k parts of the work, from 1; None is all of it.
        asked: what the recipe was asked to have otherwise, of plain values by option.
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
        """The words that make the recipe, which its run folders keep."""
        small = ["--small"] if self.small else []
        return ["tilting", "recipe", self.recipe.name, "--out", str(self.out), *small, "--seed", str(self.seed)]

    @property
    def opening(self) -> Report:
        """What every report opens with."""
        recipe, seed = self.recipe, self.seed if self.recipe.seeded else None
        about = {"recipe": recipe.name, "version": __version__, "title": recipe.heading}
        about |= {"paper": recipe.after or recipe.paper, "small": self.small, "seed": seed, "notes": list(recipe.notes)}
        return about | ({"asked": dict(self.asked)} if self.asked else {})

    def share(self, minutes: Mapping[str, float]) -> list[str]:
        """Which parts of the work this run makes, by what each takes: the longest first, each to the shard with least to do.
        What other shards made lies in the folder when their files are copied there. Says the total beforehand."""
        mine, (i, k) = [], self.shard or (1, 1)
        loads = [0.0] * k
        for name in sorted(minutes, key=lambda name: -minutes[name]):
            least = loads.index(min(loads))
            loads[least] += minutes[name]
            mine += [name] if least == i - 1 else []
        total, longest = sum(minutes.values()), max(loads)
        about = f"about {total:.0f} min if idle, {k} shard(s) of at most {longest:.0f}; {len(mine)} here"
        self.say(f"{len(minutes)} parts, {about}")
        return [name for name in minutes if name in mine]

    def check(self) -> None:
        """Refuse the folder of another recipe, size or seed before anything is drawn.

        Raises:
            TiltingError: that, or a folder that cannot be written or holds something else.
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
        name: on the command line.
        about: one line for the list; the page's title too, unless there is a ``title``.
        paper: where it comes from, for the list; and for the page, unless ``after`` says it there.
        measure: makes what is missing of a run and measures it: what table.json holds beside what every report opens with.
        page: table.md, from what table.json holds.
        seeded: whether a seed may be asked for.
        sharded: whether it can be made in parts (`Run.share`).
        notes: sentences for the reader.
        asks: which of model, reward, prompts, seeds and steps it can be asked to have otherwise.
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
    asks: ClassVar[tuple[str, ...]] = ()

    @property
    def heading(self) -> str:
        """The page's title."""
        return self.title or self.about

    def otherwise(self, asked: Mapping[str, Any]) -> Self:
        """The recipe in another setting, of those that it ``asks``."""
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
        """Make the recipe, or what is missing of it, as `Run` has it, and return what table.json holds; of a shard, the table
        of what there is so far.

        Raises:
            TiltingError: a folder that cannot be written, or holds something else.
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
    """A report of a small run for its page: its numbers mean nothing, and what they would decide is not said."""
    if isinstance(report, list):
        return [undecided(one) for one in report]
    if not isinstance(report, Mapping):
        return report
    said = {"verdict": TOO_FEW, "judge_falls": None}
    return {key: said[key] if key in said and value is not None else undecided(value) for key, value in report.items()}
