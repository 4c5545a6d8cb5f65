"""The rows of a table as requests of `tilting generate`, drawn where they are missing, with the time left."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from tilting.config.generate import GenerateConfig, resolve
from tilting.cost import Cost, cost
from tilting.errors import TiltingError
from tilting.generation.run import Folder, load_parts, run
from tilting_papers.folder import Say, command
from tilting_papers.loader import Loader
from tilting_papers.tables import SMALL, Row, Size, Table, shrink

REFERENCE, SOURCES = "reference", "references"
VALUE_SECONDS = 2.0
"""What a decode and a score take (most of them with a gradient), relative to an evaluation; for the time left only."""


@dataclass(frozen=True)
class DrawnTable:
    """The finished run folders of a table.

    Attributes:
        runs: the folders of each row, one for every reference picture or just one, in the table's order.
        reference: the base run of another seed.
        sources: the reference pictures; empty without.
        manifests: by folder.
        about: what table.json says of the whole: model, prompts, images, steps, eta, cfg.
    """

    runs: dict[str, list[Path]]
    reference: Path
    sources: list[Path]
    manifests: dict[Path, dict[str, Any]]
    about: dict[str, Any]


def cost_of(config: GenerateConfig, strength: float | None = None) -> Cost:
    """What one image of a request costs."""
    steps = config.steps if strength is None else max(1, round(config.steps * strength))
    method = config.preset().build(steps)
    return cost(method if strength is None else method.begun_at(steps / config.steps), steps)


class Requests:
    """A table's rows as checked requests.

    Args:
        table, out, small, seed: as of `run_table`.
    """

    def __init__(self, table: Table, out: Path, small: bool, seed: int):
        self.table, self.out, self.small, self.seed = table, out, small, seed
        self.size: Size = SMALL if small else table.size
        self.rows = [row for row in table.rows if row.small or not small]
        self.prompts = table.prompts[: self.size.prompts]

    def request(self, name: str, method: str, **options: Any) -> GenerateConfig:
        """A run of the table's prompts, size and seed in DIR/runs/NAME; ``options`` win."""
        usual: dict[str, Any] = {
            "prompts": list(self.prompts), "reward": list(self.table.reward), "images": self.size.images,
            "steps": self.size.steps, "seed": self.seed, "out": str(self.out / "runs" / name), "method": method,
        }  # fmt: skip
        return resolve(usual | options)

    def reference(self) -> GenerateConfig:
        """The base run that distances are taken to, of another seed."""
        return self.request(REFERENCE, "base", seed=self.seed + 1)

    def sources(self) -> GenerateConfig | None:
        """The run that draws the reference pictures, if any row starts from one."""
        prompts = self.table.sources[: self.size.references]
        if not prompts or all(row.strength is None for row in self.rows):
            return None
        return self.request(SOURCES, "base", prompts=list(prompts), images=1, steps=20, seed=self.seed + 2)

    def row(self, row: Row, pictures: list[Path]) -> list[GenerateConfig]:
        """A row's requests: one for every picture it starts from, or just one."""
        places: list[Path | None] = [None] if row.strength is None else [*pictures]
        return [self._one(row, k if len(places) > 1 else None, picture) for k, picture in enumerate(places)]

    def _one(self, row: Row, number: int | None, picture: Path | None) -> GenerateConfig:
        settings, particles = dict(row.settings), row.particles
        if self.small:
            settings = {name: shrink(name, value) for name, value in settings.items()}
            particles = shrink("particles", particles)
        options: dict[str, Any] = {"set": {f"{row.method}.{name}": value for name, value in settings.items()}}
        if row.reward is not None:
            options["reward"] = list(row.reward)
        if picture is not None:
            options |= {"image": str(picture), "strength": row.strength}
        if row.equal is not None:
            particles = self._equal(row, options)
        name = row.name if number is None else f"{row.name}-{number}"
        return self.request(name, row.method, **options, particles=particles)

    def _equal(self, row: Row, options: dict[str, Any]) -> int:
        """The least N that gives a row the evaluations of the one it is to equal."""
        other = next(r for r in self.rows if r.name == row.equal)
        if other.strength != row.strength:
            raise TiltingError(f"the rows {row.name} and {other.name} start differently: their evaluations are not comparable")
        places = [Path(options["image"])] if "image" in options else []
        target = cost_of(self.row(other, places)[0], other.strength).evaluations
        one = cost_of(self.request(row.name, row.method, **options, particles=1), row.strength).evaluations
        return ceil(target / one)


class _Clock:
    """The time left, from what finished runs took: seconds per unit of cost."""

    def __init__(self) -> None:
        self.units = self.seconds = 0.0

    def add(self, units: float, seconds: float) -> None:
        self.units += units
        self.seconds += seconds

    def left(self, units: float) -> str:
        """ ", about 3 min left" for so many units to do; nothing before the first run is finished."""
        if not self.units:
            return ""
        seconds = units * self.seconds / self.units
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def _units(config: GenerateConfig, strength: float | None) -> float:
    cost = cost_of(config, strength)
    return len(config.prompts) * config.images * (cost.evaluations + VALUE_SECONDS * cost.values)


def draw_rows(table: Table, out: Path, small: bool, say: Say, seed: int, quiet: bool) -> DrawnTable:
    """Draw what is missing of a table's rows. Every request and folder is checked before the first is drawn.

    Raises:
        TiltingError: a folder that holds another run.
    """
    argv, clock = command(table.name, out, small, seed), _Clock()
    asked, loader = Requests(table, out, small, seed), Loader(load_parts)
    manifests: dict[Path, dict[str, Any]] = {}

    def draw(config: GenerateConfig) -> Path:
        place = Path(config.out or "")
        manifests[place] = run(config, argv, quiet=quiet, parts=loader.parts)
        return place

    source = asked.sources()
    pictures: list[Path] = []
    if source is not None:
        say(f"reference pictures: {len(source.prompts)}")
        place = draw(source)
        pictures = [place / record["file"] for record in manifests[place]["images"]]
    rows = {row.name: asked.row(row, pictures) for row in asked.rows}
    reference = asked.reference()
    strengths = {row.name: row.strength for row in asked.rows}
    todo = [(name, c, strengths[name]) for name, configs in rows.items() for c in configs]
    todo.insert(0, (REFERENCE, reference, None))
    complete = [Folder(config, argv).complete for _, config, _ in todo]
    costs = [_units(config, strength) for _, config, strength in todo]
    for i, (name, config, _) in enumerate(todo):
        rest = sum(cost for cost, done in zip(costs[i:], complete[i:], strict=True) if not done)
        say(f"row {i + 1} of {len(todo)}: {name}" + (" (drawn before)" if complete[i] else clock.left(rest)))
        clock.add(costs[i], manifests[draw(config)]["summary"]["seconds"])
    about = {
        "model": reference.model, "prompts": list(asked.prompts), "images": asked.size.images, "steps": asked.size.steps,
        "eta": reference.eta, "cfg": reference.cfg, "references": [str(p.relative_to(out)) for p in pictures],
    }  # fmt: skip
    runs = {name: [Path(c.out or "") for c in configs] for name, configs in rows.items()}
    return DrawnTable(runs, Path(reference.out or ""), pictures, manifests, about)
