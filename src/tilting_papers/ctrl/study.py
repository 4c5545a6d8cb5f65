"""A table of the CTRL paper as data: labels, rows of pictures asked for every class, and how much is learnt. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from tilting.config.condition_train import OWN
from tilting_papers.prompts import ANIMALS
from tilting_papers.recipe import Recipe, Report, Run, later

CTRL = "Zhao et al. 2024 (CTRL)"
FIRST = "first"
"""Name of the family, the part and the folder of a first round."""
Family = Literal["base", "dps", "noisy", "free", "ctrl", "first"]
Cells = Mapping[str, Sequence[Mapping[str, Any]]]
"""Measured pictures by row, a mapping for every combination of classes; see `ctrl.measure.read`."""


@dataclass(frozen=True)
class Label:
    """A label y of pictures: a score cut into classes at quantiles of the base model's own pictures.

    Attributes:
        name: name of the label, its classifier and its column.
        score: images (n, 3, h, w) in [0, 1] -> (n,).
        quantiles: increasing shares of the base model's images below each cut.
        unit: unit of the score.
        meaning: descriptions of the classes, from the lowest score up.
    """

    name: str
    score: Callable[..., Any]
    quantiles: tuple[float, ...]
    unit: str
    meaning: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names: "0", "1", ..."""
        return tuple(str(k) for k in range(len(self.quantiles) + 1))


compressibility, brightness = later("ctrl.labels:compressibility"), later("ctrl.labels:brightness")
SIZE = Label("size", compressibility, (0.25, 0.6, 0.95), "\N{MINUS SIGN}kB", ("largest", "large", "small", "smallest"))
"""The paper's four classes of JPEG size; the smallest files are one picture in twenty."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: name of the row and its folder.
        family: base; dps, reconstruction guidance by the clean classifier; noisy, classifier guidance; free, a control by
            classifier-free fine-tuning; ctrl; first, the control of a first round.
        strength: γ of guidance, γ2 of a control.
        small: whether ``--small`` includes it.
        part: the part of the study whose artifacts it uses; "" if there is only one.
        gamma: γ of its control's training; overrides the study's.
    """

    name: str
    family: Family
    strength: float = 1.0
    small: bool = True
    part: str = ""
    gamma: float | None = None

    @property
    def made_by(self) -> str:
        """The folder of its control within its part."""
        return control_name(self.gamma) if self.family == "ctrl" else self.family


def control_name(gamma: float | None) -> str:
    """The folder of a control trained with this γ; None for the study's own."""
    return "ctrl" if gamma is None else f"ctrl-{gamma:g}"


def best_name(family: str, part: str = "") -> str:
    """Name of a rival's row with the best strength for each class."""
    return f"{family}{part and '-' + part}, best"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of data, training and rows.

    Attributes:
        data: labelled pictures of each prompt and label.
        copies: augmented copies of each of them, for the classifiers.
        second_round: pictures of each prompt, class and strength that a first control draws as further data; 0 for one round.
        images: images of each prompt and class in a row.
        steps: T, the same for data, training and rows: p_pre is the distribution of this sampler.
        train_steps, batch: training of the control.
        epochs, widths: training and size of the classifier.
        fit_steps: fixed number of Adam steps of a classifier, whatever the number of pictures; None uses ``epochs``.
        free_steps, free_batch: training by classifier-free fine-tuning.
        noisy_epochs: training of the classifier of noisy latents.
    """

    data: int = 50
    copies: int = 3
    second_round: int = 3
    images: int = 2
    steps: int = 12
    train_steps: int = 150
    batch: int = 8
    epochs: int = 15
    widths: tuple[int, ...] = (16, 32, 64)
    fit_steps: int | None = None
    free_steps: int = 200
    free_batch: int = 32
    noisy_epochs: int = 60


FULL = Size()
FEW: dict[str, Any] = {"data": 30, "copies": 1, "second_round": 1, "images": 1, "steps": 4, "widths": (16, 16, 16)}
SMALL = Size(train_steps=3, batch=4, epochs=2, free_steps=4, free_batch=8, noisy_epochs=2, **FEW)
SMALL_PROMPTS = 4


MEASURE, PAGE = later("ctrl.measure:measure"), later("ctrl.page:markdown")


@dataclass(frozen=True, kw_only=True)
class Study(Recipe):
    """A table of the paper on model pocket; in addition to `Recipe`:

    Attributes:
        rows: its rows.
        labels: the labels to control.
        size: sizes of the full run.
        tiny: sizes of ``--small``.
        prompts: prompts of data, training and rows.
        model: name or folder of the model.
        settings: further options of `tilting condition train`.
        counts: number of labelled pictures per label, by part ("" for a study with one part); None for all.
        kinds: kind of classifier by part, if it is not a CNN: "mlp" on frozen embeddings, or "pool", three CNNs with averaged
            logits, so that no class is likely where they disagree.
        worst: claimed minimum accuracy of any class, beside .85 of accuracy and macro F1; None claims none of these.
        claims: further claims, from the report and the cells of every row.
        published: the paper's values by row, in words.
    """

    measure: Callable[[Run], Report] = MEASURE
    page: Callable[[Report], str] = PAGE
    rows: tuple[Row, ...]
    labels: tuple[Label, ...] = (SIZE,)
    size: Size = FULL
    tiny: Size = SMALL
    prompts: tuple[str, ...] = ANIMALS
    model: str = "pocket"
    settings: Mapping[str, Any] = field(default_factory=lambda: dict(OWN["pocket"]))
    counts: Mapping[str, int | None] = field(default_factory=lambda: {"": None})
    kinds: Mapping[str, str] = field(default_factory=dict)
    worst: float | None = 0.75
    claims: Callable[[Report, Cells], list[dict[str, Any]]] = lambda report, cells: []
    published: Mapping[str, str] = field(default_factory=dict)
    asks: tuple[str, ...] = ("prompts", "steps")

    def otherwise(self, asked: Mapping[str, Any]) -> Self:
        """The same rows on other prompts, or chains of so many steps."""
        changed: dict[str, Any] = {"prompts": tuple(asked["prompts"])} if "prompts" in asked else {}
        if "steps" in asked:
            changed |= {key: replace(getattr(self, key), steps=asked["steps"]) for key in ("size", "tiny")}
        return replace(self, **changed)
