"""CTRL's baselines at inference: guidance by a classifier of noisy latents (Dhariwal & Nichol 2021), or of clean pictures
through x0.

    classifier guidance        eps' = eps - σ_t γ ∇_{x_t} log p(y | x_t, t),   x0' to match
    reconstruction guidance    eps' = eps - σ_t γ ∇_{x_t} log p(y | x0(x_t))    (Ho et al. 2022), the preset dps as a score

For γ = 1 and the true p(y | x_t, t) the first is Lemma 2 of CTRL itself (Zhao et al. 2024): its law is p(x | y) as T grows.
For other γ it is not, since E[p(y | x_0)^γ | x_t] is not p(y | x_t)^γ. The second puts x0 for a whole posterior, and is
biased always. Several labels add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tilting.conditioning.noisy import NoisyClassifier, OfPictures
from tilting.conditioning.readings import Tests
from tilting.errors import TiltingError
from tilting.models.labels import together
from tilting.schedule import Schedule
from tilting.types import Denoise, Prediction, Time, Watch

if TYPE_CHECKING:
    from tilting.models.control_file import Control

LogProb = Callable[[Tensor, Time, Tensor], Tensor]
"""(x_t (m, ...), t, rows (m,)) -> (m,): Σ_k log p_k(y_k | x_t, t) of what each row is asked for."""


def classifier_guided(denoise: Denoise, log_p: LogProb, gamma: float, watch: Watch | None = None) -> Denoise:
    """A denoiser under classifier guidance; at pure noise (alpha 0), where x_t says nothing of y, it is as it was.

    Args:
        denoise: of the pre-trained model.
        log_p: what is climbed.
        gamma: γ; at 0 the denoiser is as it was.
        watch: called with the guided and the pre-trained prediction where they differ.
    """

    def guided(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        before = eps, x0, correction = denoise(x, t, rows)
        if t.alpha == 0 or gamma == 0:
            return before
        with torch.enable_grad():
            here = x.detach().requires_grad_(True)
            move = t.sigma * gamma * torch.autograd.grad(log_p(here, t, rows).sum(), here)[0]
        after = Prediction(eps - move, x0 + t.sigma / t.alpha * move, correction)
        if watch is not None:
            watch(after, before, t, rows)
        return after

    return guided


@dataclass(frozen=True)
class ClassifierGuided:
    """A model under classifier guidance, as a model: every sampler and method takes it in the pre-trained model's place.

    Attributes:
        model: a `tilting.models.pipeline.Pipeline`, or anything that has its ``denoiser``.
        classifiers: of noisy latents, by label.
        targets: label -> the index of a class or the number that every image is asked for.
        gamma: γ.
        watch: see `classifier_guided`.
    """

    model: Any
    classifiers: Mapping[str, NoisyClassifier]
    targets: Mapping[str, float]
    gamma: float = 1.0
    watch: Watch | None = field(default=None, compare=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "", **how: Any) -> Denoise:
        """The guided denoiser of these prompts."""

        def log_p(x: Tensor, t: Time, rows: Tensor) -> Tensor:
            asked = [self.classifiers[k].log_prob(x, t, x.new_full((len(x),), float(v))) for k, v in self.targets.items()]
            return torch.stack(asked).sum(0)

        return classifier_guided(self.model.denoiser(prompts, cfg, negative, **how), log_p, self.gamma, self.watch)


class Obeying(NamedTuple):
    """A model whose images obey labels, and what tells whether they do.

    Attributes:
        model: to draw with.
        tests: label -> (classifier of pictures, what is asked).
    """

    model: Any
    tests: Tests


def controlled(
    controls: Mapping[str, Control], asked: Mapping[str, Mapping[str, str | float]], strength: float, watch: Watch | None = None
) -> Obeying:
    """Controls of one model with labels fixed.

    Args:
        controls: by any name.
        asked: by the same names, label -> the name of a class, or a number in the label's unit.
        strength: γ2 of all of them.
        watch: see `tilting.models.labels.Controlled`.
    """
    model = together(*(control.fixed(asked[name], strength) for name, control in controls.items()))
    model.watch = watch
    return Obeying(model, {k: test for name, c in controls.items() for k, test in c.tests(asked[name]).items()})


def guided_by(
    model: Any,
    classifiers: Sequence[NoisyClassifier],
    labels: Mapping[str, str | float],
    gamma: float = 1.0,
    watch: Watch | None = None,
) -> Obeying:
    """A model under classifier guidance by labels as people write them: names of classes, or numbers in the label's unit.

    Raises:
        TiltingError: a value that a label does not take.
    """
    named = {c.schema.label: c.to(getattr(model, "device", "cpu")) for c in classifiers}
    targets = {name: named[name].schema.target(value) for name, value in labels.items()}
    tests = {name: (OfPictures(named[name], model.encode, model.schedule), value) for name, value in labels.items()}
    return Obeying(ClassifierGuided(model, named, targets, gamma, watch), tests)


def check_noise(schedule: Schedule, steps: int) -> None:
    """Refuse a grid on which guidance does nothing. Raises TiltingError."""
    if all(t.alpha == 0 for t in schedule.grid(steps)[:-1]):
        raise TiltingError(f"a classifier has no effect at pure noise, which is all that {steps} step sees: use 2 or more")
