"""Rows of a CTRL recipe: pictures asked for every combination of classes, the same prompts and noise in every row.

A cell is a row asked for one combination; each is a resumable run folder in DIR/runs, whose records have the path KL to the
base model (``kl``). The base model is asked for nothing: its one run stands for every cell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tilting.experiments import run as generating
from tilting.experiments.condition.notes import note
from tilting.experiments.condition.sample import Held, SampleFolder
from tilting.experiments.condition.sample_config import resolve_sample
from tilting.experiments.config import GenerateConfig, resolve
from tilting.experiments.folder import digest
from tilting.experiments.recipes.ctrl.arms import Shop
from tilting.models.control_kl import PathKl
from tilting.presets import Preset
from tilting.presets.guided import Dps

if TYPE_CHECKING:
    from tilting.experiments.run import Parts
    from tilting.guidance.kernel import Kernel
    from tilting.guidance.slope import Site, Slope
    from tilting.method import Method
    from tilting.types import Denoise, Prediction, Time

Family = Literal["base", "dps", "noisy", "free", "ctrl"]
Asked = dict[str, int]
"""Label -> class."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: of the line and its folder.
        family: base; dps, reconstruction guidance by the clean classifier; noisy, classifier guidance; free, a control by
            classifier-free fine-tuning; ctrl.
        strength: γ of guidance, γ2 of a control.
        small: whether ``--small`` has it.
        part: of a study with several of a kind, whose parts it uses ("" for one).
    """

    name: str
    family: Family
    strength: float = 1.0
    small: bool = True
    part: str = ""


@dataclass(frozen=True)
class Cell:
    """What a row was asked for, and where the pictures are."""

    asked: Asked
    folder: Path
    manifest: dict[str, Any]


def combinations(classes: Mapping[str, int]) -> list[Asked]:
    """Every combination of classes of labels that have so many."""
    return [dict(zip(classes, chosen, strict=True)) for chosen in product(*(range(n) for n in classes.values()))]


@dataclass(frozen=True)
class Watch:
    """The last guide of a method: it changes nothing, and sees how far the others moved the kernel."""

    kl: PathKl
    needs_slope = False
    values = 0

    def __call__(self, kernel: Kernel, slope: Slope | None, site: Site) -> Kernel:
        if slope is not None:
            self.kl(kernel.prediction, slope.prediction, kernel.t, site.rows)
        return kernel


@dataclass(frozen=True)
class Watched(Dps):
    """Reconstruction guidance whose path KL is summed up."""

    watch: PathKl | None = field(default=None, compare=False)

    def build(self, steps: int) -> Method:
        method = super().build(steps)
        return method if self.watch is None else replace(method, guides=(*method.guides, Watch(self.watch)))


@dataclass(frozen=True)
class DpsConfig(GenerateConfig):
    """A request of the preset dps that is watched."""

    watch: PathKl | None = field(default=None, compare=False)

    def preset(self) -> Preset:
        plain = super().preset()
        return Watched(**{f.name: getattr(plain, f.name) for f in fields(plain)}, watch=self.watch)  # type: ignore[arg-type]


class Remembering:
    """A model whose denoiser keeps its last prediction."""

    def __init__(self, model: Any):
        self.model, self.last = model, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "") -> Denoise:
        inner = self.model.denoiser(prompts, cfg, negative)

        def denoise(x: Any, t: Time, rows: Any) -> Prediction:
            self.last = inner(x, t, rows)
            return self.last

        return denoise


class WatchedModel:
    """Classifier guidance whose path KL is summed up, as a model.

    Args:
        model: the base model.
        classifiers, targets, gamma: of `tilting.conditioning.noisy.ClassifierGuided`.
        kl: what sums up.
    """

    def __init__(self, model: Any, classifiers: Mapping[str, Any], targets: Mapping[str, float], gamma: float, kl: PathKl):
        from tilting.conditioning.noisy import ClassifierGuided

        self.base, self.kl = Remembering(model), kl
        self.guided = ClassifierGuided(self.base, classifiers, targets, gamma)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["guided"], name)

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "") -> Denoise:
        inner = self.guided.denoiser(prompts, cfg, negative)

        def denoise(x: Any, t: Time, rows: Any) -> Prediction:
            found = inner(x, t, rows)
            assert self.base.last is not None
            self.kl(found, self.base.last, t, rows)
            return found

        return denoise


class CellFolder(generating.Folder):
    """A run's folder whose records have the path KL, and whose identity also names what guided it."""

    def __init__(self, config: GenerateConfig, argv: Sequence[str] = (), kl: PathKl | None = None, guide: Any = None):
        self.kl, self.guide = kl, guide
        super().__init__(config, argv)

    def identities(self) -> dict[str, Any]:
        found = super().identities()
        if self.guide is not None:
            found["model"]["guide"] = json.loads(json.dumps(self.guide))
        return found

    def records_of(self, drawn: Any, judge: Any) -> list[dict[str, Any]]:
        records = note(super().records_of(drawn, judge), drawn.images, self.kl, {})
        return records if self.kl is not None else [{**r, "kl": 0.0} for r in records]


class Drawer:
    """Draws cells; model, judge, classifiers and controls are loaded once, and only if something is missing.

    Args:
        shop: prompts, sizes and seed.
        places: part -> {"fit": {label: folder}, "noisy": {label: folder}, "ctrl": folder, "free": folder}.
    """

    def __init__(self, shop: Shop, places: Mapping[str, Mapping[str, Any]]):
        self.shop, self.places = shop, places
        self.parts: Parts | None = None
        self.loaded: dict[Path, Any] = {}
        self.held: dict[Path, Held] = {}

    def cells(self, row: Row) -> list[Cell]:
        """Draw what is missing of a row."""
        asked = combinations({label.name: len(label.classes) for label in self.shop.labels})
        if row.family == "base":
            place = self.shop.out / "runs" / row.name
            manifest = generating.run(self._request(place), self.shop.argv, self.shop.quiet, self._load, CellFolder)
            return [Cell(one, place, manifest) for one in asked]
        draw = {"dps": self._dps, "noisy": self._noisy, "free": self._control, "ctrl": self._control}[row.family]
        found = []
        for one in asked:
            place = self.shop.out / "runs" / row.name / "-".join(f"{k}{y}" for k, y in one.items())
            found.append(Cell(one, place, draw(row, one, place)))
        return found

    def _options(self, place: Path) -> dict[str, Any]:
        shop = self.shop
        return {"prompts": list(shop.prompts), "model": shop.model, "images": shop.size.images, "steps": shop.size.steps,
                "seed": shop.seed, "batch-size": 40, "out": str(place)}  # fmt: skip

    def _request(self, place: Path, **options: Any) -> GenerateConfig:
        return resolve(self._options(place) | options)

    def _load(self, config: GenerateConfig) -> Parts:
        """Base model and judge; the reward is the config's own."""
        from tilting.rewards.build import build

        if self.parts is None:
            self.parts = generating.load_parts(replace(config, reward=(), method="base"))
        return self.parts._replace(reward=build(config.specs()) if config.reward else None)

    def _path_kl(self, config: GenerateConfig) -> PathKl:
        return PathKl(self._load(replace(config, reward=())).model.schedule.grid(config.steps), config.eta)

    def _dps(self, row: Row, asked: Asked, place: Path) -> dict[str, Any]:
        fits = self.places[row.part]["fit"]
        specs = [f"likelihood:{fits[name]}#{name}={y}" for name, y in asked.items()]
        settings = {"dps.strength": row.strength, "dps.form": "score"}
        plain = self._request(place, method="dps", reward=specs, set=settings)
        guide = {"digests": [digest(fits[name]) for name in asked]}
        if CellFolder(plain, self.shop.argv, None, guide).complete:
            return CellFolder(plain, self.shop.argv, None, guide).manifest
        kl = self._path_kl(plain)
        config = DpsConfig(**{f.name: getattr(plain, f.name) for f in fields(GenerateConfig)}, watch=kl)
        return generating.run(config, self.shop.argv, self.shop.quiet, self._load, partial(CellFolder, kl=kl, guide=guide))

    def _noisy(self, row: Row, asked: Asked, place: Path) -> dict[str, Any]:
        folders = {name: self.places[row.part]["noisy"][name] for name in asked}
        guide = {"gamma": row.strength, "asked": asked, "digests": [digest(f) for f in folders.values()]}
        config = self._request(place)
        ready = CellFolder(config, self.shop.argv, None, guide)
        if ready.complete:
            return ready.manifest
        kl = self._path_kl(config)

        def parts(config: GenerateConfig) -> Parts:
            from tilting.conditioning.noisy import load_noisy

            for folder in folders.values():
                if folder not in self.loaded:
                    self.loaded[folder] = load_noisy(folder)
            found, targets = self._load(config), {name: float(y) for name, y in asked.items()}
            classifiers = {name: self.loaded[folder] for name, folder in folders.items()}
            model: Any = WatchedModel(found.model, classifiers, targets, row.strength, kl)
            return found._replace(model=model)

        return generating.run(config, self.shop.argv, self.shop.quiet, parts, partial(CellFolder, kl=kl, guide=guide))

    def _control(self, row: Row, asked: Asked, place: Path) -> dict[str, Any]:
        control = self.places[row.part][row.family]
        config = resolve_sample(self._options(place) | {
            "control": [str(control)], "label": [f"{k}={y}" for k, y in asked.items()], "strength": row.strength,
        })  # fmt: skip
        held = self.held.setdefault(control, Held())
        return generating.run(config, self.shop.argv, self.shop.quiet, held.load, partial(SampleFolder, held=held))  # type: ignore[arg-type]
