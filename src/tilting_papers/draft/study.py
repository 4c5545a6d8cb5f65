"""A figure of the DRaFT paper as data (training runs, sets of prompts, claims), and the results that it has. Torch-free.

Clark et al. 2024 at the size of pocket: T = 20 for their 50 (and K scaled to T), 100 training steps for their thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tilting_papers.numbers import Finding, Values
from tilting_papers.prompts import ANIMALS
from tilting_papers.recipe import Recipe, Report, Run, later

if TYPE_CHECKING:
    from tilting_papers.cache import PartsCache

DRAFT = "Clark et al. 2024 (DRaFT)"
BASE = "base"
TRAIN, HELD = ANIMALS[:12], ANIMALS[12:]
"""What is trained on, and prompts that training never sees. The first eight of each are drawn to evaluate."""
STYLE = {"style": "log p of noto, nats"}
"""A reward of the image alone, in the part of the aesthetic score, and its unit."""


@dataclass(frozen=True)
class Size:
    """How much is trained and evaluated.

    Attributes:
        steps: T.
        train_steps: of a run that has none of its own.
        batch: images of a training step.
        images: of each prompt in an evaluation.
        evaluations: evaluations after training has begun, evenly spaced.
    """

    steps: int = 20
    train_steps: int = 100
    batch: int = 4
    images: int = 4
    evaluations: int = 5


FULL = Size()
SMALL = Size(steps=5, train_steps=4, batch=2, images=2, evaluations=2)
SMALL_PROMPTS = 2


def of_fifty(k: int, steps: int) -> int:
    """So many of the paper's 50 sampling steps as steps of T: the same share, at least 1."""
    return min(steps, max(1, round(k * steps / 50)))


@dataclass(frozen=True)
class Training:
    """One training run, evaluated every so often on fixed prompts and noise.

    Attributes:
        name: of its line and folder.
        objective: of `tilting finetune`.
        settings: of the objective.
        k: K of the paper's 50 steps, scaled to T and given to draft-k; None leaves the settings alone.
        reward: instead of the recipe's.
        lr, clip: of the optimiser.
        batch: instead of the size's, in the full run.
        options: more options of `tilting finetune`.
        published: the paper's row to print beside it.
        small: whether ``--small`` has it.
    """

    name: str
    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    k: int | None = None
    reward: tuple[str, ...] | None = None
    lr: float = 4e-4
    clip: float = 1.0
    batch: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    published: str | None = None
    small: bool = True


class Variant(NamedTuple):
    """A trained LoRA, or several, used in another way.

    Attributes:
        name: of the line and of its files.
        loras: (folder of weights, scale) of each that is added.
        window: the steps first <= i < last in which they are on; None is all.
    """

    name: str
    loras: tuple[tuple[Path, float], ...]
    window: tuple[int, int] | None = None


@dataclass(frozen=True)
class Protocol:
    """How a model is evaluated: the same prompts and noise under every LoRA, scored by rewards and by the held-out judge.

    Attributes:
        sets: prompts by the name of the set; the first eight different ones are drawn.
        images: of each prompt.
        reward: specs that every image is scored by.
        seed: of the noise.
    """

    sets: Mapping[str, tuple[str, ...]]
    images: int
    reward: tuple[str, ...]
    seed: int

    @property
    def about(self) -> dict[str, Any]:
        """As JSON reads it back."""
        sets = {name: list(prompts) for name, prompts in self.sets.items()}
        return {"sets": sets, "images": self.images, "reward": list(self.reward), "seed": self.seed}


Scores = dict[str, Any]
"""Of one set: "prompts", "rewards" {spec: values}, "judge", and the spreads "apart" {prompt: distance} and "spread"."""


def values_of(scores: Scores, what: str) -> Values:
    """A number of every image: "judge", or a reward by its spec; or of every prompt: "apart". Missing ones are left out."""
    if what == "apart":
        return {(0, prompt, 0): value for prompt, value in scores["apart"].items()}
    count: dict[str, int] = {}
    values: Values = {}
    for prompt, value in zip(scores["prompts"], scores["judge"] if what == "judge" else scores["rewards"][what], strict=True):
        count[prompt] = count.get(prompt, -1) + 1
        if value is not None:
            values[0, prompt, count[prompt]] = value
    return values


@dataclass(frozen=True)
class Claim:
    """What the paper says, and how our numbers are asked about it.

    Attributes:
        text: what is tested, in our own terms.
        published: what the paper found.
        test: from the results, a `Finding`; None where the rows that it needs are not there.
    """

    text: str
    published: str
    test: Callable[[Results], Finding | None]


MEASURE, PAGE = later("draft.measure:measure"), later("draft.page:markdown")


@dataclass(frozen=True, kw_only=True)
class Study(Recipe):
    """A figure of the paper on model pocket; beside the fields of every recipe:

    Attributes:
        runs: its training runs.
        figures: from the finished results, writes pictures and returns their names.
        reward: specs that runs are trained on unless they have their own.
        scored: specs that every image is scored by; the first is the table's. None is those of ``reward``.
        units: of each of them.
        prompts: to train on.
        sets: prompts to evaluate on, by name; the first one is the set of the training curves.
        size: of the full run.
        variants: from the study's results so far, LoRAs used in other ways.
        extra: measures more: by heading, a table of "heads" and "rows" and what else is to be kept.
        own: scores by name that ``scored`` may ask for besides rewards.
        published: its key in published.yaml, and the unit of what stands there.
        claims: what is to be tested.
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
    variants: Callable[[Results], list[Variant]] = lambda results: []
    extra: Callable[[Results], dict[str, Any]] = lambda results: {}
    own: Callable[[], Mapping[str, Any]] = lambda: {}
    published: tuple[str, str] | None = None
    claims: tuple[Claim, ...] = ()


@dataclass
class Results:
    """What a study has made.

    Attributes:
        study, size, out, small, cache, protocol: how.
        configs, summaries: of every training run, by name.
        variants: the scores of every variant, by name and set.
        extra: what the study measured besides.
    """

    study: Study
    size: Size
    out: Path
    small: bool
    cache: PartsCache[Any, Any]
    protocol: Protocol
    configs: dict[str, Any] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    variants: dict[str, dict[str, Scores]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

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

    def points(self, run: str) -> list[dict[str, Any]]:
        """The evaluations of a run, the first before training."""
        return self.summaries[run]["points"]

    def scores(self, name: str) -> dict[str, Scores]:
        """The last evaluation of a run, or that of a variant; "base" is the first run's before training."""
        if name == BASE:
            return self.points(next(iter(self.summaries)))[0]["sets"]
        return self.variants[name] if name in self.variants else self.points(name)[-1]["sets"]

    def values(self, name: str, what: str | None = None, where: str | None = None) -> Values:
        """Numbers per image of a row: the table's reward unless ``what`` says another or "judge", of the first set."""
        return values_of(self.scores(name)[where or self.first], what or self.spec)

    def over_training(self, run: str, what: str | None = None, where: str | None = None) -> list[Values]:
        """The same at every evaluation of a run."""
        return [values_of(point["sets"][where or self.first], what or self.spec) for point in self.points(run)]

    def lora(self, run: str, step: int | None = None) -> Path:
        """Where a run's weights lie, as they were after a training step that was evaluated; the last ones without."""
        return self.out / "runs" / run / ("lora" if step is None else f"loras/{step:06d}")

    def sheet(self, name: str, where: str | None = None, step: int | None = None) -> Path:
        """The pictures of a row."""
        where = where or self.first
        if name in self.variants:
            return self.out / "variants" / f"{name}-{where}.png"
        run = next(iter(self.summaries)) if name == BASE else name
        step = 0 if name == BASE else self.points(run)[-1]["step"] if step is None else step
        return self.out / "runs" / run / "looks" / f"{step:06d}-{where}.png"
