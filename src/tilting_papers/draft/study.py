"""A figure of the DRaFT paper as data (training runs, sets of prompts, claims), and the results that it has. Torch-free.

Clark et al. 2024 at the size of pocket: T = 20 for their 50 (and K scaled to T), 100 training steps for their thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tilting.config.recipe import OTHERWISE
from tilting_papers.numbers import Finding, Values, mean
from tilting_papers.prompts import ANIMALS
from tilting_papers.recipe import PARTED, POCKET, Recipe, Report, Run, later, noted, parted, units_of

if TYPE_CHECKING:
    from tilting_papers.cache import PartsCache

DRAFT = "Clark et al. 2024 (DRaFT)"
BASE = "base"
TRAIN, HELD = ANIMALS[:12], ANIMALS[12:]
"""Training prompts, and held-out ones. Evaluations use the first eight of each."""
STYLE = {"style": "log p of noto, nats"}
"""A reward of the image alone, in place of the aesthetic score, with its unit."""


@dataclass(frozen=True)
class Size:
    """Sizes of training and evaluation.

    Attributes:
        steps: T.
        train_steps: training steps of a run without its own.
        batch: images per training step.
        images: images of each prompt in an evaluation.
        evaluations: number of evaluations during training, evenly spaced.
        prompts: prompts of each set in an evaluation.
    """

    steps: int = 20
    train_steps: int = 100
    batch: int = 4
    images: int = 4
    evaluations: int = 5
    prompts: int = 8


FULL = Size()
SMALL_PROMPTS = 2
SMALL = Size(steps=5, train_steps=4, batch=2, images=2, evaluations=2, prompts=SMALL_PROMPTS)


SEED = ".s"
"""Separates a run's name from a further seed in its folder's name."""


def seeded(run: str, seed: int) -> str:
    """The folder of a run's training seed, counted from 0."""
    return f"{run}{SEED}{seed}" if seed else run


def of_fifty(k: int, steps: int) -> int:
    """Convert k of the paper's 50 sampling steps to a chain of ``steps`` steps: the same share, at least 1."""
    return min(steps, max(1, round(k * steps / 50)))


@dataclass(frozen=True)
class Training:
    """One training run, evaluated at intervals on fixed prompts and noise.

    Attributes:
        name: name of its row and folder.
        objective: objective of `tilting finetune`.
        settings: settings of the objective.
        k: K of the paper's 50 steps for draft-k, scaled to T; None changes no setting.
        reward: overrides the recipe's.
        lr, clip: learning rate and gradient clip.
        batch, train_steps: override the size's in the full run.
        options: further options of `tilting finetune`.
        published: the paper's row to print beside it.
        seeds: number of training seeds; overrides the study's.
        small: whether ``--small`` includes it.
    """

    name: str
    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    k: int | None = None
    reward: tuple[str, ...] | None = None
    lr: float = 4e-4
    clip: float = 1.0
    batch: int | None = None
    train_steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    published: str | None = None
    seeds: int | None = None
    small: bool = True


class Variant(NamedTuple):
    """A row that applies trained LoRAs in another way: scaled, mixed, or in part of the steps.

    Attributes:
        name: name of the row and of its files.
        loras: (folder of weights, scale) of each LoRA.
        window: the steps first <= i < last in which they are active; None for all.
    """

    name: str
    loras: tuple[tuple[Path, float], ...]
    window: tuple[int, int] | None = None


@dataclass(frozen=True)
class Protocol:
    """How models are evaluated: the same prompts and noise for every LoRA, scored by rewards and by the held-out judge.

    Attributes:
        sets: prompts by name of the set.
        images: images of each prompt.
        reward: reward specs.
        seed: seed of the noise.
        between: number of sets that are evaluated between the first and the last evaluation; None for all.
    """

    sets: Mapping[str, tuple[str, ...]]
    images: int
    reward: tuple[str, ...]
    seed: int
    between: int | None = None

    @property
    def about(self) -> dict[str, Any]:
        """The protocol as JSON data."""
        sets = {name: list(prompts) for name, prompts in self.sets.items()}
        about = {"sets": sets, "images": self.images, "reward": list(self.reward), "seed": self.seed}
        return about if self.between is None else {**about, "between": self.between}

    def along(self) -> Protocol:
        """The protocol of evaluations between the first and the last."""
        return replace(self, sets=dict(list(self.sets.items())[: self.between]))


Scores = dict[str, Any]
"""Scores of one set: "prompts", "rewards" {spec: values}, "judge", and the spreads "apart" {prompt: distance} and "spread"."""


def values_of(scores: Scores, what: str, seed: int = 0) -> Values:
    """Values per image ("judge", or a reward by its spec) or per prompt ("apart"); missing ones are left out. ``seed`` is the
    number of the training seed, for the keys."""
    if what == "apart":
        return {(seed, prompt, 0): value for prompt, value in scores["apart"].items()}
    count: dict[str, int] = {}
    values: Values = {}
    for prompt, value in zip(scores["prompts"], scores["judge"] if what == "judge" else scores["rewards"][what], strict=True):
        count[prompt] = count.get(prompt, -1) + 1
        if value is not None:
            values[seed, prompt, count[prompt]] = value
    return values


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and its test.

    Attributes:
        text: what is tested.
        published: what the paper found.
        test: from the results to a `Finding`; None if rows are missing.
        judge: whether it is about the held-out judge, or distances in its features, which pocket alone has.
    """

    text: str
    published: str
    test: Callable[[Results], Finding | None]
    judge: bool = False


MEASURE, PAGE = later("draft.measure:measure"), later("draft.page:markdown")


@dataclass(frozen=True, kw_only=True)
class Study(Recipe):
    """A figure of the paper on model pocket; in addition to `Recipe`:

    Attributes:
        runs: its training runs.
        figures: writes figures of the results and returns their names.
        reward: training rewards of runs without their own.
        scored: rewards of evaluations, the first for the table; None for those of ``reward``.
        units: units of these rewards.
        prompts: training prompts.
        sets: evaluation prompts by name; the first set is that of the training curves.
        size: sizes of the full run.
        seeds: number of training seeds per run; evaluations use the same noise for all.
        between: see `Protocol`.
        variants: from the results of the runs to further rows.
        extra: further measurements: by heading, a table of "heads" and "rows" and any other data.
        own: further scores by name, which ``scored`` may use.
        published: its key in published.yaml, and the unit of the published values.
        claims: claims to test.
        tiny: of ``--small``.
        model: the model to train.
        given: training seeds, instead of as many from the run's on; the first is that of the noise of evaluations.
    """

    measure: Callable[[Run], Report] = MEASURE
    page: Callable[[Report], str] = PAGE
    runs: tuple[Training, ...]
    figures: Callable[[Results], list[str]]
    reward: tuple[str, ...] = ("clip",)
    scored: tuple[str, ...] | None = None
    units: Mapping[str, str] = field(default_factory=lambda: {"clip": "raw cosine"})
    prompts: tuple[str, ...] = TRAIN
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"train": TRAIN, "held-out": HELD})
    size: Size = FULL
    seeds: int = 1
    between: int | None = None
    sharded: bool = True
    variants: Callable[[Results], list[Variant]] = lambda results: []
    extra: Callable[[Results], dict[str, Any]] = lambda results: {}
    own: Callable[[], Mapping[str, Any]] = lambda: {}
    published: tuple[str, str] | None = None
    claims: tuple[Claim, ...] = ()
    tiny: Size = SMALL
    model: str = POCKET
    given: tuple[int, ...] = ()
    asks: tuple[str, ...] = OTHERWISE

    def otherwise(self, asked: Mapping[str, Any]) -> Self:
        """The same runs and claims on another model, with another reward, prompts, training seeds or steps.

        Raises:
            TiltingError: too few prompts to hold some of them out.
        """
        changed: dict[str, Any] = {"given": tuple(asked.get("seeds", ()))}
        if asked.get("model", POCKET) != POCKET:
            claims = tuple(claim for claim in self.claims if not claim.judge)
            changed |= {"model": asked["model"], "published": None, "claims": claims}
        if "reward" in asked:
            changed |= {"reward": tuple(asked["reward"]), "units": units_of(asked["reward"])}
        notes = list(noted(self.notes, changed.get("model", POCKET)))
        if "prompts" in asked:
            train, held = parted(self.name, asked["prompts"])
            changed |= {"prompts": train, "sets": {"train": train, "held-out": held}}
            notes.append(PARTED)
        if "steps" in asked:
            changed |= {key: replace(getattr(self, key), steps=asked["steps"]) for key in ("size", "tiny")}
        return replace(self, notes=tuple(notes), **changed)


@dataclass
class Results:
    """What a study has made.

    Attributes:
        study, size, out, small, cache, protocol: how.
        configs: of every training run that there is, by name; of its first seed.
        summaries: the same of what it became.
        repeats: by name, the summaries of its further seeds.
        variants: the scores of every variant, by name and set.
        extra: what the study measured besides.
        left: what is left out, since its pictures or weights are not in the folder.
    """

    study: Study
    size: Size
    out: Path
    small: bool
    cache: PartsCache[Any, Any]
    protocol: Protocol
    configs: dict[str, Any] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    repeats: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    variants: dict[str, dict[str, Scores]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    @property
    def spec(self) -> str:
        """The table's reward."""
        return self.protocol.reward[0]

    @property
    def first(self) -> str:
        """The first set, that of the curves."""
        return next(iter(self.protocol.sets))

    @property
    def names(self) -> list[str]:
        """Of all rows."""
        return [*([BASE] if self.summaries else []), *self.summaries, *self.variants]

    def of_seeds(self, run: str) -> list[dict[str, Any]]:
        """What became of a run, by seed."""
        return [self.summaries[run], *self.repeats.get(run, ())]

    def points(self, run: str) -> list[dict[str, Any]]:
        """The evaluations of a run by its first seed, the first before training."""
        return self.summaries[run]["points"]

    def scores(self, name: str) -> list[dict[str, Scores]]:
        """The last evaluation of a run by seed, or that of a variant; "base" is the first run's before training."""
        if name == BASE:
            return [self.points(next(iter(self.summaries)))[0]["sets"]]
        return [self.variants[name]] if name in self.variants else [one["points"][-1]["sets"] for one in self.of_seeds(name)]

    def values(self, name: str, what: str | None = None, where: str | None = None) -> Values:
        """Numbers per image of a row: the table's reward unless ``what`` says another or "judge", of the first set."""
        return self._merged(self.scores(name), what, where)

    def _merged(self, scores: Sequence[dict[str, Scores]], what: str | None, where: str | None) -> Values:
        merged: Values = {}
        for seed, sets in enumerate(scores):
            merged |= values_of(sets[where or self.first], what or self.spec, seed)
        return merged

    def over_training(self, run: str, what: str | None = None, where: str | None = None) -> list[Values]:
        """The same at every evaluation of a run, but those that another set was left out of."""
        looks = zip(*(one["points"] for one in self.of_seeds(run)), strict=False)
        by_look = [[point["sets"] for point in points] for points in looks]
        return [self._merged(sets, what, where) for sets in by_look if all((where or self.first) in one for one in sets)]

    def spread(self, name: str, where: str) -> float | None:
        """The mean distance of any two pictures of a row, over its seeds."""
        known = [one[where]["spread"] for one in self.scores(name) if one[where]["spread"] is not None]
        return mean(known) if known else None

    def lora(self, run: str, step: int | None = None, seed: int = 0) -> Path:
        """Where a run's weights lie, as they were after a training step that was evaluated; the last ones without."""
        return self.out / "runs" / seeded(run, seed) / ("lora" if step is None else f"loras/{step:06d}")

    def sheet(self, name: str, where: str | None = None, step: int | None = None) -> Path:
        """The pictures of a row."""
        where = where or self.first
        if name in self.variants:
            return self.out / "variants" / f"{name}-{where}.png"
        run = next(iter(self.summaries)) if name == BASE else name
        step = 0 if name == BASE else self.points(run)[-1]["step"] if step is None else step
        return self.out / "runs" / run / "looks" / f"{step:06d}-{where}.png"
