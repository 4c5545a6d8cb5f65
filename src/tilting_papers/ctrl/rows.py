"""Rows of a CTRL recipe: pictures asked for every combination of classes, the same prompts and noise in every row.

A cell is a row asked for one combination; each is a resumable run folder in DIR/runs, whose records have the path KL to the
base model (``kl``). The base model is asked for nothing: its one run stands for every cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from tilting.conditioning.sample_run import Loaded, sample_into
from tilting.config.condition_sample import SampleConfig
from tilting.config.generate import resolve
from tilting.generation import run as generating
from tilting_papers.ctrl.arms import Shop

Family = Literal["base", "dps", "noisy", "free", "ctrl", "first"]
FIRST = "first"
"""The family, the part and the folder of a first round."""
Asked = dict[str, int]
"""Label -> class."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: of the line and its folder.
        family: base; dps, reconstruction guidance by the clean classifier; noisy, classifier guidance; free, a control by
            classifier-free fine-tuning; ctrl; first, the control of a first round.
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


def options_of(shop: Shop, place: Path) -> dict[str, Any]:
    """What every run of a study asks for."""
    return {"prompts": list(shop.prompts), "model": shop.model, "images": shop.size.images, "steps": shop.size.steps,
            "seed": shop.seed, "batch-size": 40, "out": str(place)}  # fmt: skip


def draw_asked(
    shop: Shop, held: Loaded, by: Mapping[str, list[str]], asked: Asked, strength: float, place: Path, **instead: int
) -> dict[str, Any]:
    """The manifest of pictures that obey labels, as `tilting condition sample` draws them.

    Args:
        shop: prompts, sizes and seed.
        held: what is loaded.
        by: {"control": folders} or {"classifier": folders}.
        asked: the classes.
        strength: of it.
        place: the run's folder.
        instead: options that replace the study's own.
    """
    labels = [f"{k}={y}" for k, y in asked.items()]
    options = {**options_of(shop, place), **by, "label": labels, "strength": strength, **instead}
    return sample_into(SampleConfig.resolve(options), held, shop.argv, shop.quiet)


def name_of(asked: Asked) -> str:
    """The folder of what is asked for."""
    return "-".join(f"{k}{y}" for k, y in asked.items())


class BaseFolder(generating.Folder):
    """A run of the base model, whose path KL to itself is 0."""

    def records_of(self, drawn: Any, judge: Any) -> list[dict[str, Any]]:
        return [{**record, "kl": 0.0} for record in super().records_of(drawn, judge)]


class Drawer:
    """Draws cells; model, judge, classifiers and controls are loaded once, and only if something is missing.

    Args:
        shop: prompts, sizes and seed.
        places: part -> {"fit": {label: folder}, "noisy": {label: folder}, "ctrl": folder, "free": folder, "first": folder}.
    """

    def __init__(self, shop: Shop, places: Mapping[str, Mapping[str, Any]]):
        self.shop, self.places, self.held = shop, places, Loaded()

    def cells(self, row: Row) -> list[Cell]:
        """Draw what is missing of a row."""
        asked = combinations({label.name: len(label.classes) for label in self.shop.labels})
        shop, place = self.shop, self.shop.out / "runs" / row.name
        if row.family == "base":
            manifest = generating.run(resolve(options_of(shop, place)), shop.argv, shop.quiet, self.held.plain, BaseFolder)
            return [Cell(one, place, manifest) for one in asked]
        folders = [place / name_of(one) for one in asked]
        return [Cell(one, folder, self._draw(row, one, folder)) for one, folder in zip(asked, folders, strict=True)]

    def _draw(self, row: Row, asked: Asked, place: Path) -> dict[str, Any]:
        """As `tilting condition sample` does, by a control or by classifiers."""
        made, fitted = self.places[row.part], {"dps": "fit", "noisy": "noisy"}.get(row.family)
        by = {"classifier": [str(made[fitted][name]) for name in asked]} if fitted else {"control": [str(made[row.family])]}
        return draw_asked(self.shop, self.held, by, asked, row.strength, place)
