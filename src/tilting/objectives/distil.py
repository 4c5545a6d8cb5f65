"""On-policy distillation of a teacher: LoRAs, or a steered sampler.

    a network    |mean_θ(x_t) - mean_teacher(x_t)|² / (2 std²) at the states of the model's own chains      Li et al. 2026
    a sampler    the error of pre-training on the steered sampler's finished samples, of the network under CFG

A teacher that is a network (LoRAs and their sum) is asked at every state the student comes to: the KL of a step of two
Gaussians of one std, and the difference of outputs where a step has none. A sampler that selects among particles has no mean
of a step; its law is what fits of its finished samples come to, and it draws from the frozen model, so that the target stands.
What is fitted is what draws afterwards, the prediction under CFG: one without, fitted to samples that had guidance, would be
guided twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from typing_extensions import Doc

from tilting.declare import Check
from tilting.lazy import torch
from tilting.objectives.batch import OBJECTIVES, BaseObjective, Loss, TrainBatch, closed
from tilting.objectives.denoising import distance
from tilting.objectives.rollout import rollout
from tilting.objectives.supervised import error_at, noised
from tilting.presets import METHODS
from tilting.sample import Problem, finish, sample, start

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.presets import Preset
    from tilting.types import Denoise


def known(name: str, value: str) -> str:
    """A method's name. Raises TiltingError."""
    METHODS.find(value)
    return value


def steered(batch: TrainBatch, preset: Preset) -> Tensor:
    """Finished samples (b, ...) of the frozen model under a method, without gradients of the parameters."""
    method, eta = preset.build(batch.steps), batch.eta if batch.eta or not preset.selects else 1.0
    kept = (batch.device, batch.dtype)
    problem = Problem(
        batch.base, batch.grid, batch.who, batch.shape, batch.value, eta, batch.cfg, len(batch.who), *kept, law=batch.law
    )
    with torch.no_grad():
        state = start(problem, method)
        for state, _ in sample(problem, method, state):  # noqa: B007, B020
            pass
        return finish(problem, method, state).x[:, 0]


@OBJECTIVES.register
@dataclass(frozen=True)
class Opd(BaseObjective):
    """On-policy distillation, of LoRAs (``--teacher``) or, without, of a steered sampler: steer, then bake.

        of a network:  x_T .. x_0 = a chain of θ, without gradients
            for each step t of those chosen:
                loss += mean |mean_θ(x_t) - mean_teacher(x_t)|² / (2 std_t²)       std > 0, over latent dimensions
                loss += mean (f_θ(x_t) - f_teacher(x_t))²                          where a step has no noise
        of a sampler:  x_0 = finished samples of the frozen model under the method
            for each epoch, for j = 1 .. J:
                t ~ Uniform of the grid, ε ~ N(0, I);  loss += mean |f_θ(α_t x_0 + σ_t ε, t) - f|² / J      f under CFG
        θ <- AdamW(∇_θ loss)

    The optimum of the first is the teacher, at the states that the student comes to; of the second a model whose samples are
    the sampler's, at the base model's cost. No reward is in either loss: where all are equal it learns its teacher none the
    less, a sampler's then being the base model. Steered samples are dear: each batch of them is learned from in several epochs
    of new times and noise, an update each.
    """

    name, paper = "opd", "Li et al. 2026, arXiv 2605.15055; DiffusionOPD"
    takes_teacher = True

    method: Annotated[
        str, Check(known), Doc("the sampler that is baked where no --teacher is given; see `tilting methods`")
    ] = "code"
    steps: Annotated[
        int | None, Ge(1), Doc("steps of a chain that are learned from, drawn afresh in every training step; None is all")
    ] = None
    timesteps: Annotated[int, Ge(1), Doc("grid times per epoch of a batch of steered samples")] = 4
    epochs: Annotated[int, Ge(1), Doc("updates from a batch of steered samples")] = 4

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        return METHODS[self.method]().needs_reward_gradient

    @property
    def default_eta(self) -> float:
        return METHODS[self.method].default_eta

    @property
    def updates_several(self) -> bool:
        return self.epochs > 1

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        yield from self._of_sampler(batch) if batch.teacher is None else self._of_network(batch, batch.teacher)

    def _of_network(self, batch: TrainBatch, teacher: Denoise) -> Iterator[Loss]:
        with torch.no_grad():
            path = rollout(batch, closed(batch))
            value = batch.value(path.clean, batch.rows).detach()
        order = torch.randperm(batch.steps, generator=batch.generator("steps"), device="cpu").tolist()
        chosen = order[: self.steps]
        for n, i in enumerate(chosen):
            point, numbers = path.points[i], {"reward": value.mean().item()} if n == 0 else {}
            with torch.no_grad():
                theirs = teacher(point.x, point.t, batch.rows)
            mine = batch.denoise(point.x, point.t, batch.rows)
            if batch.std(i) > 0:
                kernel, mean = batch.kernel(mine, i), batch.kernel(theirs, i).mean
                far = ((kernel.mean - mean) / kernel.std).flatten(1).square().mean(1) / 2
            else:
                far = distance(mine, theirs, point.t, batch.kind)
            yield Loss(far.mean() / len(chosen), {**numbers, "from_teacher": far.mean().item()}, n == len(chosen) - 1)

    def _of_sampler(self, batch: TrainBatch) -> Iterator[Loss]:
        preset: Any = METHODS[self.method]()
        clean = steered(batch, preset)
        with torch.no_grad():
            value = batch.value(clean, batch.rows).detach()
        if not batch.all(value).isfinite().all():
            raise FloatingPointError("the reward is not finite")
        for epoch in range(self.epochs):
            for k in range(self.timesteps):
                point = noised(clean, batch.rows, batch, epoch * self.timesteps + k)
                error = error_at(batch.denoise, point, batch.kind).mean()
                numbers = {"error": error.item()} | ({"reward": value.mean().item()} if epoch == k == 0 else {})
                yield Loss(error / self.timesteps, numbers, update=k == self.timesteps - 1)
