"""Pictures of a CTRL recipe: of every combination of classes, the same prompts and noise in every row.

A cell is a row asked for one combination; each is a resumable run folder in DIR/runs, whose records have the path KL to the
base model (``kl``). The base model is asked for nothing: its one run stands for every cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from tilting.conditioning.sample_run import Loaded, sample_into
from tilting.config.condition_sample import SampleConfig
from tilting.config.generate import resolve
from tilting.generation import run as generating
from tilting.generation.folder import Folder
from tilting_papers.ctrl.study import SMALL_PROMPTS, Row, Size, Study
from tilting_papers.recipe import Run

Asked = dict[str, int]
"""Label -> class."""


def combinations(classes: Mapping[str, int]) -> list[Asked]:
    """Every combination of classes of labels that have so many."""
    return [dict(zip(classes, chosen, strict=True)) for chosen in product(*(range(n) for n in classes.values()))]


def name_of(asked: Asked) -> str:
    """The folder of what is asked for."""
    return "-".join(f"{k}{y}" for k, y in asked.items())


class BaseFolder(Folder):
    """A run of the base model, whose path KL to itself is 0."""

    def records_of(self, drawn: Any, judge: Any) -> list[dict[str, Any]]:
        return [{**record, "kl": 0.0} for record in super().records_of(drawn, judge)]


@dataclass(frozen=True)
class Sampler:
    """Draws what a study asks for; model, judge, classifiers and controls are loaded once, and only if something is missing.

    Attributes:
        run: the making of a `Study`.
        loaded: what is loaded.
    """

    run: Run
    loaded: Loaded = field(default_factory=Loaded)

    @property
    def study(self) -> Study:
        return self.run.recipe

    @property
    def size(self) -> Size:
        return self.study.tiny if self.run.small else self.study.size

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.study.prompts[:SMALL_PROMPTS] if self.run.small else self.study.prompts

    @property
    def asked(self) -> list[Asked]:
        """Every combination of classes of the study's labels."""
        return combinations({label.name: len(label.classes) for label in self.study.labels})

    def options(self, folder: Path, **instead: int) -> dict[str, Any]:
        """What every run of a study asks for; ``instead`` replaces the study's own."""
        own = {"prompts": list(self.prompts), "model": self.study.model, "images": self.size.images, "steps": self.size.steps}
        return {**own, "seed": self.run.seed, "batch-size": 40, "out": str(folder), **instead}

    def draw(self, by: Mapping[str, list[str]], asked: Asked, strength: float, folder: Path, **instead: int) -> dict[str, Any]:
        """The manifest of pictures that obey labels, as `tilting condition sample` draws them.

        Args:
            by: {"control": folders} or {"classifier": folders}.
            asked: the classes.
            strength: of it.
            folder: of the run.
            instead: options that replace the study's own.
        """
        labels = [f"{k}={y}" for k, y in asked.items()]
        config = SampleConfig.resolve({**self.options(folder, **instead), **by, "label": labels, "strength": strength})
        return sample_into(config, self.loaded, self.run.argv, self.run.quiet)

    def drawn(self, row: Row) -> bool:
        """Whether a row's pictures lie in its folder."""
        folder = self.run.out / "runs" / row.name
        places = [folder] if row.family == "base" else [folder / name_of(asked) for asked in self.asked]
        return all((place / "manifest.json").exists() for place in places)

    def cells(self, row: Row, made: Mapping[str, Any]) -> list[tuple[Asked, Path, dict[str, Any]]]:
        """Draw what is missing of a row: of each cell what was asked for, the run's folder and its manifest.

        Args:
            row: which.
            made: {"fit": {label: folder}, "noisy": {label: folder}, "ctrl": folder, "free": folder, "first": folder}.
        """
        folder = self.run.out / "runs" / row.name
        if row.family == "base":
            config = resolve(self.options(folder))
            manifest = generating.run(config, self.run.argv, self.run.quiet, self.loaded.plain, BaseFolder)
            return [(asked, folder, manifest) for asked in self.asked]
        fitted = {"dps": "fit", "noisy": "noisy"}.get(row.family)
        cells = []
        for asked in self.asked:
            one = folder / name_of(asked)
            by = {"classifier": [str(made[fitted][k]) for k in asked]} if fitted else {"control": [str(made[row.made_by])]}
            cells.append((asked, one, self.draw(by, asked, row.strength, one)))
        return cells
