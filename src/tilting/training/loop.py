"""The training loop: a generator that makes optimiser steps and yields a report of each. No files, no arguments, no printing.

    for each training step: losses of the objective -> backward -> (average over processes) -> clip -> AdamW

A step whose loss, reward or gradient is not finite, or whose reward fails, is skipped and counted; ten in a row stop the run.
So do ten steps at the beginning none of which had a gradient; and a run that ends without one has learnt nothing, and says so.
All of that is seen before the optimiser moves; only objectives that make several updates in a step pay for a copy of the
state, since a later one may fail when an earlier one has been made.
Everything random is keyed by (seed, step): a resumed run is the same run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tilting.config.training import ADAMW
from tilting.objectives.batch import Losses, TrainBatch
from tilting.training.average import Average
from tilting.training.checkpoint import Saved, optimiser_tensors, restore_optimiser
from tilting.training.half import ranged
from tilting.training.sharding import Agreed, Elsewhere, in_step, same
from tilting.types import RewardError, TiltingError, ValueFn

PATIENCE = 10
"""Skipped steps in a row that stop a run, and steps without a gradient at its beginning."""
SAME = "the reward was the same for all images that it compared"
DETACHED = "the reward has no gradient at a finished image, though it says that it is differentiable"


class Group(NamedTuple):
    """Parameters with a rate of their own.

    Attributes:
        prefix: of their names.
        factor: of the learning rate; 50 for guidance weights (Clark et al. 2024, B.12).
        decays: whether weight decay pulls them to 0.
    """

    prefix: str
    factor: float = 1.0
    decays: bool = True


@dataclass(frozen=True)
class Optimiser:
    """AdamW as in the paper (Clark et al. 2024, A.1).

    Attributes:
        rate: learning rate; 4e-4 in its small runs, 2e-4 in its large ones.
        weight_decay: decoupled; on a LoRA it pulls towards the base model.
        betas: of the moments.
        clip: largest norm of the gradient, over all parameters of a group (one, unless ``groups`` says otherwise).
        schedule: of the rate after its warm-up: "constant"; "linear" or "cosine", down to 0 at ``steps``; or "sqrt":
            min(10 step^-1/2, 1), the paper's for long runs.
        warmup: steps in which the rate rises from 1/warmup of it to all of it.
        steps: of the whole run.
        groups: parameters that are stepped, and clipped, apart from the others.
        kind: "adamw"; or "adamw8bit", bitsandbytes', whose moments are of 8 bits in tensors of 4096 weights or more.
    """

    rate: float = 4e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    schedule: str = "constant"
    warmup: int = 0
    steps: int = 0
    groups: tuple[Group, ...] = ()
    kind: str = ADAMW

    def build(self, parameters: Sequence[nn.Parameter] | Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW over parameters; by name, where there are groups."""
        named = parameters if isinstance(parameters, Mapping) else {str(i): p for i, p in enumerate(parameters)}
        rest = Group("")
        whose = {name: next((g for g in self.groups if name.startswith(g.prefix)), rest) for name in named}
        groups = [
            {
                "params": [p for name, p in named.items() if whose[name] is group],
                "factor": group.factor,
                "weight_decay": self.weight_decay if group.decays else 0.0,
            }
            for group in (rest, *self.groups)
        ]
        held: Any = [group for group in groups if group["params"]]
        kind = torch.optim.AdamW if self.kind == ADAMW else import_module("bitsandbytes").optim.AdamW8bit
        return kind(held, lr=self.rate, weight_decay=self.weight_decay, betas=self.betas)

    def at(self, step: int) -> float:
        """The learning rate of a training step, counted from 0."""
        gone = min(max(step - self.warmup, 0) / max(self.steps - self.warmup, 1), 1.0)
        share = {
            "constant": 1.0,
            "linear": 1 - gone,
            "cosine": (1 + math.cos(math.pi * gone)) / 2,
            "sqrt": min(10 * (step + 1) ** -0.5, 1.0),
        }[self.schedule]
        return self.rate * share * (min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0)


@dataclass
class TrainState:
    """The mutable state of a run: what a checkpoint holds.

    Attributes:
        parameters: trained tensors by name, in a fixed order.
        optimiser: over them.
        step: training steps made, skipped ones included.
        memory: what the objective remembers; plain JSON values.
        skipped, row: steps skipped in all, and in a row.
        moved: whether a step had a gradient, and so moved the weights by more than their decay.
        why: the last skipped step was skipped, or "".
        averages: of the parameters, by name; each takes in every step that was made.
    """

    parameters: dict[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    step: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    row: int = 0
    moved: bool = False
    why: str = ""
    averages: dict[str, Average] = field(default_factory=dict)

    def saved(self) -> Saved:
        """A copy for a checkpoint."""
        weights = {name: p.detach().clone() for name, p in self.parameters.items()}
        counted = {"skipped": self.skipped, "row": self.row, "moved": self.moved, "why": self.why}
        state = {"memory": copy.deepcopy(self.memory), **counted}
        averages = {name: {k: v.clone() for k, v in one.values.items()} for name, one in self.averages.items()}
        return Saved(self.step, weights, optimiser_tensors(self.optimiser), state, averages)

    def restore(self, saved: Saved) -> None:
        """Go back to a checkpoint. Raises TiltingError if it is of other parameters."""
        if set(saved.weights) != set(self.parameters):
            raise TiltingError("the checkpoint holds other parameters than this run trains")
        with torch.no_grad():
            for name, p in self.parameters.items():
                if p.shape != saved.weights[name].shape:
                    raise TiltingError(f"the checkpoint's {name} is {tuple(saved.weights[name].shape)}, not {tuple(p.shape)}")
                p.copy_(saved.weights[name])
        for name, average in self.averages.items():
            average.restore(saved.averages.get(name, {}))
        restore_optimiser(self.optimiser, saved.optimiser)
        self.step, self.memory = saved.step, saved.state["memory"]
        self.skipped, self.row = saved.state["skipped"], saved.state["row"]
        self.moved = saved.state.get("moved", True)  # an older checkpoint does not say
        self.why = saved.state.get("why", "")


class Info(NamedTuple):
    """What a training step did.

    Attributes:
        step: training steps made, this one included.
        numbers: the objective's numbers averaged over its losses, with loss, gradient norm (before clipping), rate and skipped.
        skipped: why the step was skipped, or None.
        seconds: it took; a `tilting.training.trainer.Trainer` looks at the clock.
    """

    step: int
    numbers: dict[str, Any]
    skipped: str | None
    seconds: float = 0.0


Reduce = Callable[[Tensor], Tensor]
"""A tensor -> its mean over processes; None where there is one."""


def train(
    state: TrainState,
    objective: Losses,
    batch_of: Callable[[int, dict[str, Any]], TrainBatch],
    optimiser: Optimiser,
    steps: int,
    reduce: Reduce | None = None,
    half: bool = False,
    trouble: Callable[[], str | None] = lambda: None,
    lockstep: bool = False,
) -> Iterator[Info]:
    """Make training steps up to ``steps``, yielding what each did.

    Args:
        state: changed in place; start from a restored one to resume.
        objective: what is minimised.
        batch_of: (training step counted from 0, memory) -> the batch.
        optimiser: its settings (``state.optimiser`` was built by them).
        steps: to reach.
        reduce: mean over processes of a gradient, and of a flag.
        half: whether networks compute in fp16, which gradients must then be kept in the range of.
        trouble: what went wrong in the batch, where that says more than the loss.
        lockstep: whether processes make every call of the network together; see `tilting.training.sharding`.

    Raises:
        TiltingError: after `PATIENCE` skipped steps in a row, or as many at the beginning without a gradient.
    """
    parameters = list(state.parameters.values())
    while state.step < steps:
        for group in state.optimiser.param_groups:
            group["lr"] = optimiser.at(state.step) * group.get("factor", 1.0)
        before = state.saved() if objective.updates_several else None
        memory = copy.deepcopy(state.memory)
        averages = {name: average.on for name, average in state.averages.items()}
        batch = replace(batch_of(state.step, state.memory), trained=parameters, averages=averages)
        batch = ranged(batch) if half else batch
        batch = replace(batch, value=attached(batch.value)) if _told(objective) else batch
        if lockstep and reduce is not None:
            batch = in_step(batch, reduce)
        numbers, reason = _step(state, parameters, objective, batch, optimiser, reduce, lockstep)
        if reason is not None:
            if before is not None:
                state.restore(before)  # nothing of a broken step remains, not even what earlier updates of it did
            reason, state.memory = trouble() or reason, memory
            state.why = reason
            state.skipped, state.row = state.skipped + 1, state.row + 1
        else:
            state.row = 0
            state.moved = state.moved or numbers.get("gradient_norm", 0.0) > 0
            for average in state.averages.values():
                average.update(state.step + 1)
        state.step += 1
        yield Info(state.step, {**numbers, "skipped": float(state.skipped)}, reason)
        if state.row >= PATIENCE:
            raise TiltingError(f"training stopped: {PATIENCE} steps in a row were skipped, the last because {reason}")
        if not state.moved and state.step - state.skipped >= PATIENCE:
            check_moved(state, objective)


def check_moved(state: TrainState, objective: Losses) -> None:
    """Refuse a run none of whose steps has moved the weights. Raises TiltingError, which says why, as far as that is known.

    Args:
        state: after its steps.
        objective: what was minimised.
    """
    if state.moved or not state.step:
        return
    made = state.step - state.skipped
    if not made:
        because = f", the last because {state.why}" if state.why else ""
        raise TiltingError(f"training learnt nothing: all of its {state.step} steps were skipped{because}")
    why = DETACHED if _told(objective) else SAME
    raise TiltingError(f"training learnt nothing: none of its {made} steps that were made had a gradient: {why}")


def _told(objective: Losses) -> bool:
    """Whether it learns from the reward's own gradient."""
    return bool(getattr(getattr(objective, "inner", objective), "needs_gradient", False))


def attached(value: ValueFn) -> ValueFn:
    """A reward of latents that is refused where its value is not connected to them, though a gradient is asked for."""

    def asked(x0: Tensor, rows: Tensor) -> Tensor:
        scores = value(x0, rows)
        if torch.is_grad_enabled() and x0.requires_grad and not scores.requires_grad:
            raise TiltingError(DETACHED)
        return scores

    return asked


def _step(
    state: TrainState,
    parameters: list[nn.Parameter],
    objective: Losses,
    batch: TrainBatch,
    optimiser: Optimiser,
    reduce: Reduce | None,
    lockstep: bool,
) -> tuple[dict[str, float], str | None]:
    """One training step: (numbers, why it must be skipped or None)."""
    sums: dict[str, list[float]] = {}
    total, reason, updates = 0.0, None, 0
    state.optimiser.zero_grad(set_to_none=True)
    try:
        with torch.enable_grad():
            for loss in objective(batch):
                bad = None if loss.value.isfinite().all() else FloatingPointError(f"the loss is {loss.value.item()}")
                if lockstep and reduce is not None:
                    same(bad, reduce)
                elif bad is not None:
                    raise bad
                if loss.value.requires_grad:
                    loss.value.backward()
                total += loss.value.item()
                for name, number in loss.numbers.items():
                    sums.setdefault(name, []).append(number)
                if loss.update:
                    updates += 1
                    if updates > 1 and not objective.updates_several:
                        raise TypeError(f"{objective.name} says that it makes one update a step and makes more")
                    norm = _update(state, parameters, optimiser, reduce)
                    sums.setdefault("gradient_norm", []).append(norm)
    except Elsewhere as error:
        reason = str(error)
    except (FloatingPointError, RewardError) as error:
        reason = str(error)
        if reduce is not None and not isinstance(error, Agreed):
            reduce(torch.tensor(1.0, device="cpu"))  # the others wait at their next update
    numbers = {name: sum(values) / len(values) for name, values in sums.items()}
    return {"loss": total if math.isfinite(total) else 0.0, **numbers, "rate": optimiser.at(state.step)}, reason


def _update(state: TrainState, parameters: list[nn.Parameter], optimiser: Optimiser, reduce: Reduce | None) -> float:
    """Average, clip, step; the gradient's norm before clipping."""
    if reduce is not None and reduce(torch.tensor(0.0, device="cpu")).item() > 0:
        raise Elsewhere("another process skipped it")
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        if reduce is not None:
            p.grad = reduce(p.grad)
    groups = [group["params"] for group in state.optimiser.param_groups]
    norms = [torch.nn.utils.clip_grad_norm_(mine, optimiser.clip) for mine in groups]  # averaged: alike on every process
    norm = torch.stack(norms).cpu().double().norm() if len(norms) > 1 else norms[0]
    if not norm.isfinite():
        raise FloatingPointError("the gradient is not finite")
    state.optimiser.step()
    state.optimiser.zero_grad(set_to_none=True)
    return norm.item()
