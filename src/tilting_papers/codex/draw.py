"""Draws the missing rows of a table, as runs of `tilting generate`, with an estimate of the time left. A row whose part is kept
(`tilting_papers.parts`) needs no pictures; those of base and of the reference of distances are drawn for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from tilting.config.compare import named
from tilting.config.generate import GenerateConfig, resolve
from tilting.cost import Cost, cost
from tilting.errors import TiltingError
from tilting.generation import run as generating
from tilting.generation.folder import Folder
from tilting_papers import parts
from tilting_papers.cache import PartsCache
from tilting_papers.codex.table import Row, Size, Table, shrink
from tilting_papers.recipe import Run

DISTANCES, UNBIASED = ("fid", "cmmd"), "cmmd_unbiased"
OF_PICTURES = ("tclip", "igram_clip", *DISTANCES, UNBIASED)
"""What `tilting.evaluation` measures of a run's pictures, as far as tables have it."""
MEASURED = {**parts.DRAWN, "measured": dict.fromkeys(OF_PICTURES, dict | None)}
"""The numbers of a run whose pictures were measured."""
REFERENCE, SOURCES = "reference", "references"
ALWAYS = (REFERENCE, "base")
"""Rows whose pictures every shard needs."""
SECONDS = 0.008
"""Seconds of an evaluation under CFG on an idle core; used for shards and estimates of time only."""
VALUE_SECONDS = 2.0
"""Cost of a decode and a score (mostly with a gradient), in evaluations; used for estimates of time only."""


@dataclass(frozen=True)
class DrawnTable:
    """The finished run folders of a table.

    Attributes:
        runs: the folders of each row, in the table's order: one, or one for each reference picture.
        reference: folder of the base run with another seed.
        sources: the reference pictures; may be empty.
        manifests: manifests by folder, or the parts that stand for them.
        about: shared settings for table.json: model, prompts, images, steps, eta, cfg.
        requests: the requests of the rows by folder.
        kept: folders that only a part stands for.
    """

    runs: dict[str, list[Path]]
    reference: Path
    sources: list[Path]
    manifests: dict[Path, dict[str, Any]]
    about: dict[str, Any]
    requests: dict[Path, GenerateConfig]
    kept: frozenset[Path]

    def folder(self, name: str, k: int) -> Path:
        """The folder of a row's run from reference picture k, or of its only run."""
        folders = self.runs[name]
        return folders[k if len(folders) > 1 else 0]


def cost_of(config: GenerateConfig) -> Cost:
    """Cost of one image of a request."""
    return cost(*config.built())


class Requests:
    """The requests of a table's rows.

    Args:
        table: the table.
        out, small, seed: see `tilting_papers.recipe.Run`.
    """

    def __init__(self, table: Table, out: Path, small: bool, seed: int):
        self.table, self.out, self.small, self.seed = table, out, small, seed
        self.size: Size = table.tiny if small else table.size
        self.seeds: tuple[int, ...] = table.seeds or (seed,)
        self.rows = [row for row in table.rows if row.small or not small]
        self.prompts = table.prompts[: self.size.prompts]

    def request(self, name: str, method: str, **options: Any) -> GenerateConfig:
        """A request with the table's prompts, size and seed in DIR/runs/NAME; ``options`` override them."""
        own = {"prompts": list(self.prompts), "reward": list(self.table.reward), "images": self.size.images}
        seed = self.seeds if len(self.seeds) > 1 else min(self.seeds)
        own |= {"steps": self.size.steps, "seed": seed, "out": str(self.out / "runs" / name), "method": method}
        return resolve(own | {"model": self.table.model} | options)

    def reference(self) -> GenerateConfig:
        """The base run with other seeds, the reference of distances."""
        others = tuple(max(self.seeds) + 1 + i for i in range(len(self.seeds)))
        return self.request(REFERENCE, "base", seed=others if len(others) > 1 else min(others))

    def sources(self) -> GenerateConfig | None:
        """The run that draws the reference pictures, or None if no row starts from one."""
        prompts = self.table.sources[: self.size.references]
        if not prompts or all(row.strength is None for row in self.rows):
            return None
        return self.request(SOURCES, "base", prompts=list(prompts), images=1, steps=20, seed=self.seed + 2)

    def row(self, row: Row, pictures: list[Path]) -> list[GenerateConfig]:
        """The requests of a row: one, or one for each picture that it starts from."""
        starts: list[Path | None] = [None] if row.strength is None else [*pictures]
        return [self._one(row, k if len(starts) > 1 else None, picture) for k, picture in enumerate(starts)]

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
        """The smallest N with which a row has at least the evaluations of the row ``equal``."""
        other = next(r for r in self.rows if r.name == row.equal)
        if other.strength != row.strength:
            raise TiltingError(f"the rows {row.name} and {other.name} start differently: their evaluations are not comparable")
        starts = [Path(options["image"])] if "image" in options else []
        target = cost_of(self.row(other, starts)[0]).evaluations
        one = cost_of(self.request(row.name, row.method, **options, particles=1)).evaluations
        return ceil(target / one)


def _units(config: GenerateConfig) -> float:
    cost = cost_of(config)
    return len(config.prompts) * config.images * len(config.seeds) * (cost.evaluations + VALUE_SECONDS * cost.values)


def draw_rows(table: Table, run: Run) -> DrawnTable:
    """Draw what is missing of a table's rows. Every request and folder is checked before the first is drawn.

    Raises:
        TiltingError: a folder that holds another run.
    """
    asked, cache = Requests(table, run.out, run.small, run.seed), PartsCache(generating.load_parts)
    manifests: dict[Path, dict[str, Any]] = {}

    def draw(config: GenerateConfig) -> Path:
        folder = Path(config.out or "")
        manifests[folder] = generating.run(config, run.argv, quiet=run.quiet, parts=cache.parts)
        return folder

    source, pictures = asked.sources(), []
    if source is not None:
        run.say(f"reference pictures: {len(source.prompts)}")
        folder = draw(source)
        pictures = [folder / record["file"] for record in manifests[folder]["images"]]
    drawn = set(manifests)
    rows, reference = {row.name: asked.row(row, pictures) for row in asked.rows}, asked.reference()
    todo = [(REFERENCE, reference, _units(reference))]
    todo += [(row.name, config, _units(config)) for row in asked.rows for config in rows[row.name]]
    for name, config, _ in todo:
        folder = Folder(config, run.argv)
        part = None if folder.complete or name in ALWAYS else read_part(run, config)
        if part is not None:
            manifests[folder.path] = part
        elif not folder.complete:
            try:
                generating.plan_missing(folder, cache.parts(config))
            except TiltingError as error:
                raise named(f"row {name}", error) from None
    kept = frozenset(set(manifests) - drawn)
    mine = run.share({str(config.out): price * SECONDS / 60 for _, config, price in todo})
    complete = [Path(config.out or "") in kept or Folder(config, run.argv).complete for _, config, _ in todo]
    mine += [str(config.out) for name, config, _ in todo if name in ALWAYS]
    here = [(*one, done) for one, done in zip(todo, complete, strict=True) if done or str(one[1].out) in mine]
    units = seconds = 0.0
    for i, (name, config, price, done) in enumerate(here):
        left = sum(price for _, _, price, done in here[i:] if not done)
        run.say(f"row {i + 1} of {len(here)}: {name}" + (" (drawn before)" if done else _left(left, units, seconds)))
        folder = Path(config.out or "")
        folder = folder if folder in kept else draw(config)
        units, seconds = units + price, seconds + manifests[folder]["summary"]["seconds"]
    there = {name: [Path(config.out or "") for config in configs] for name, configs in rows.items()}
    runs = {name: folders for name, folders in there.items() if set(folders) <= set(manifests)}
    requests = {Path(config.out or ""): config for configs in rows.values() for config in configs}
    about = {"model": reference.model, "prompts": list(asked.prompts), "images": asked.size.images, "steps": asked.size.steps}
    about |= {"eta": reference.eta, "cfg": reference.cfg, "references": [str(p.relative_to(run.out)) for p in pictures]}
    return DrawnTable(runs, Path(reference.out or ""), pictures, manifests, about, requests, kept)


def read_part(run: Run, config: GenerateConfig) -> dict[str, Any] | None:
    """The part of a row that starts from noise, if it is kept. Raises TiltingError, as `parts.read`."""
    return None if config.image else parts.read(run.out, Path(config.out or "").name, Folder(config, run.argv), MEASURED)


def keep_part(run: Run, config: GenerateConfig, manifest: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Write the part of a drawn row, with what was measured of its pictures (`OF_PICTURES`)."""
    numbers = {**{key: manifest[key] for key in parts.DRAWN}, "measured": measured}
    parts.keep(run.out, Path(config.out or "").name, Folder(config, run.argv), numbers)


def _left(units: float, done: float, seconds: float) -> str:
    """ ", about 3 min left" for the remaining units of cost; empty until the first run is finished."""
    if not done:
        return ""
    left = units * seconds / done
    return f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"
