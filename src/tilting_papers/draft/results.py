"""A study of the DRaFT paper as data (arms, sets of prompts, claims), and what it has made: looks at every arm and variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilting.config.finetune import FinetuneConfig
from tilting_papers.draft.arms import FULL, HELD, TRAIN, Arm, Shelf, Size
from tilting_papers.draft.looks import Looks, Seen, Values, Variant, values_of

BASE = "base"


@dataclass(frozen=True)
class Claim:
    """What the paper says, and how our numbers are asked about it.

    Attributes:
        text: what is tested, in our own terms.
        published: what the paper found.
        test: from the results, a `Finding`; None where the arms that it needs are not there.
    """

    text: str
    published: str
    test: Callable[[Results], dict[str, Any] | None]


@dataclass(frozen=True)
class Study:
    """A figure of the paper on model pocket.

    Attributes:
        name, title, paper: of the recipe; of which figure.
        arms: its training runs.
        reward: specs that arms are trained on unless they have their own.
        scored: specs that every look is scored by; the first is the table's. None is those of ``reward``.
        units: of each of them.
        prompts: to train on.
        sets: prompts to look at, by name; the first one is the set of the training curves.
        size: of the full run.
        variants: from the study's results so far, LoRAs used in other ways.
        extra: measures more: by heading, a table of "heads" and "rows" and what else is to be kept.
        own: scores by name that ``scored`` may ask for besides rewards.
        figures: from the finished results, writes pictures and returns their names.
        published: its key in published.yaml, and the unit of what stands there.
        claims, notes: for the reader.
    """

    name: str
    title: str
    paper: str
    arms: tuple[Arm, ...]
    figures: Callable[[Results], list[str]]
    reward: tuple[str, ...] = ("clip",)
    scored: tuple[str, ...] | None = None
    units: Mapping[str, str] = field(default_factory=lambda: {"clip": "raw cosine"})
    prompts: tuple[str, ...] = TRAIN
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"train": TRAIN, "held-out": HELD})
    size: Size = FULL
    variants: Callable[[Results], list[Variant]] | None = None
    extra: Callable[[Results], dict[str, Any]] | None = None
    own: Callable[[], Mapping[str, Any]] | None = None
    published: tuple[str, str] | None = None
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Results:
    """What a study has made.

    Attributes:
        study, size, out, seed, small, shelf, looks: how.
        configs, summaries: of every trained arm, by name.
        variants: what was seen of every variant, by name.
        extra: what the study measured besides.
    """

    study: Study
    size: Size
    out: Path
    seed: int
    small: bool
    shelf: Shelf
    looks: Looks
    configs: dict[str, FinetuneConfig] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    variants: dict[str, dict[str, Seen]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> str:
        """The table's reward."""
        return self.looks.reward[0]

    @property
    def first(self) -> str:
        """The first set, that of the curves."""
        return next(iter(self.looks.sets))

    def points(self, arm: str) -> list[dict[str, Any]]:
        """The looks at an arm, the first before training."""
        return self.summaries[arm]["points"]

    def has(self, *names: str) -> bool:
        """Whether all these rows are there."""
        return all(name in self.summaries or name in self.variants or (name == BASE and self.summaries) for name in names)

    def seen(self, name: str) -> dict[str, Seen]:
        """The last look at an arm, or the one at a variant; "base" is the first arm's before training."""
        if name == BASE:
            return self.points(next(iter(self.summaries)))[0]["sets"]
        return self.variants[name] if name in self.variants else self.points(name)[-1]["sets"]

    def values(self, name: str, what: str | None = None, where: str | None = None) -> Values:
        """Numbers per image of a row: the table's reward unless ``what`` says another or "judge", of the first set."""
        return values_of(self.seen(name)[where or self.first], what or self.spec)

    def lora(self, arm: str, step: int | None = None) -> Path:
        """Where an arm's weights lie, as they were after a training step that was looked at; the last ones without."""
        return self.out / "runs" / arm / ("lora" if step is None else f"loras/{step:06d}")

    def sheet(self, name: str, where: str | None = None, step: int | None = None) -> Path:
        """The pictures of a row."""
        where = where or self.first
        if name in self.variants:
            return self.out / "variants" / f"{name}-{where}.png"
        arm = next(iter(self.summaries)) if name == BASE else name
        step = 0 if name == BASE else self.points(arm)[-1]["step"] if step is None else step
        return self.out / "runs" / arm / "looks" / f"{step:06d}-{where}.png"
