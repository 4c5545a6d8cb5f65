"""Training batches of a control: prompts and labels are drawn independently (Π = Π_c Π_y), and the reward is
γ Σ_k log p_k(y_k | x) of the labels.

As in `tilting.training.batches`, every number is a function of (seed, training step).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from tilting.conditioning.classifiers import Classifier, Obedience
from tilting.conditioning.objective import draw_labels
from tilting.features.schema import SPREAD, Schema
from tilting.models.labels import Augmented, Term, guided
from tilting.objectives.batch import TrainBatch
from tilting.rewards.check import checked
from tilting.rewards.elsewhere import elsewhere
from tilting.training.batches import Batches
from tilting.types import Denoise, Prediction, Time


@dataclass(kw_only=True)
class ControlBatches(Batches):
    """(training step, memory) -> the batch of that step.

    Attributes:
        augmented: what is trained, of the same model.
        classifiers: by label.
        gamma: γ, to begin with.
        seen: label -> mean log p of this process's images of the step, over all parts of the batch that were scored.
    """

    augmented: Augmented
    classifiers: dict[str, Classifier]
    gamma: float
    seen: dict[str, float] = field(default_factory=dict)

    @property
    def schemas(self) -> list[Schema]:
        """The schemas of the labels."""
        return [c.schema for c in self.classifiers.values()]

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = {name: c.schema for name, c in self.classifiers.items()}
        self._ranges = {n: (len(s.classes) or None, (-SPREAD, SPREAD)) for n, s in kinds.items()}
        self._codes: dict[str, Tensor] = {}
        self._scored, self._gamma = 0, self.gamma

    def __call__(self, step: int, memory: dict[str, Any]) -> TrainBatch:
        batch = super().__call__(step, memory)
        self.seen, self._scored = {}, 0
        self._gamma = float(memory.get("gamma", self.gamma))  # which follows a KL that is aimed at
        here = slice(batch.first, batch.first + len(batch.who))
        labels = draw_labels(self._ranges, self.config.batch_size, self.config.seed, step)
        self._codes = {n: y[here].to(self.engine.device) for n, y in labels.items()}
        terms = [Term(self.augmented, self._codes)]
        words, config = [w.prompt for w in batch.who], self.config
        controlled, pretrained = guided(terms, words, config.cfg, config.negative_prompt, count=self._count)
        return replace(batch, denoise=self._whole(controlled), base=self._whole(pretrained))

    def _count(self, latents: int) -> None:
        self.counts.evaluations += latents

    def _whole(self, network: Denoise) -> Denoise:
        """A denoiser of all of the batch."""

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            with self.engine.context():
                return Prediction(*(part.to(x.dtype) for part in network(x, t, rows)))

        return denoise

    def _score(self, images: Tensor, prompts: list[str], rows: Tensor) -> Tensor:
        codes = {name: y[rows] for name, y in self._codes.items()}
        part: dict[str, float] = {}
        obedience = elsewhere(Obedience(self.classifiers, codes, self._gamma, part), self.config.reward_device)
        found = checked(obedience, images, prompts)
        self._scored += len(images)
        for name, value in part.items():
            before = self.seen.get(name, 0.0)
            self.seen[name] = before + (value - before) * len(images) / self._scored
        return found
