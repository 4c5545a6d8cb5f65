"""The one loop. A generator that draws x_T ... x_0 step by step and yields (State, Info) after every draw.

    for each step:  correct x (gated)  ->  evaluate if the cache is stale  ->  select on value (gated)  ->  draw

The evaluation made to select is the one the draw needs, so selection adds none; a correction costs one round more, in which
eps, x0, value and gradient come together. Evaluations per image: n (T + G) with G gradient rounds.
The loop never decides whether gradients flow into the network: its caller does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from tilting import rng
from tilting.schedule import transition
from tilting.select import Select, Smc
from tilting.types import Denoise, Prediction, TiltingError, Time, Value


@dataclass(frozen=True)
class Every:
    """A gate: fires after every ``block`` draws, while the noise left is inside a window.

    Attributes:
        block: draws between two firings; draws are counted from 1, so a gate never fires at x_T, nor at x_0.
        window: (high, low) bounds of the fraction of steps left, t/T.
    """

    block: int
    window: tuple[float, float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        if self.block < 1:
            raise TiltingError(f"a block must be at least 1 step, not {self.block}")

    def __call__(self, draws: int, steps: int) -> bool:
        high, low = self.window
        return 0 < draws < steps and draws % self.block == 0 and low - 1e-9 <= 1 - draws / steps <= high + 1e-9

    def count(self, steps: int) -> int:
        """How often it fires in a run of that many steps."""
        return sum(self(i, steps) for i in range(steps))


class Correct(Protocol):
    """A move of the latents at their own time, such as `tilting.guidance.gradient.RewardGradient`."""

    def __call__(
        self, x: Tensor, t: Time, rows: Tensor, denoise: Denoise, value: Value, cfg: float
    ) -> tuple[Tensor, object]: ...


@dataclass(frozen=True)
class Method:
    """A composition of parts that the loop runs: what `tilting.presets` names.

    Attributes:
        name: the preset it came from.
        particles: n, streams per image.
        start: "independent" draws n x_T per image; "copy" repeats one.
        correct, correct_when: a move of x, and its gate.
        select, select_when: a selection rule, and its gate.
        final: "reward" keeps the particle of the highest reward of its real image, "weight" the heaviest, "first" the first
            (no reward is needed), "all" keeps every particle.
    """

    name: str
    particles: int = 1
    start: Literal["independent", "copy"] = "independent"
    correct: Correct | None = None
    correct_when: Every = Every(1)
    select: Select | None = None
    select_when: Every = Every(1)
    final: Literal["reward", "weight", "first", "all"] = "first"

    @property
    def needs_gradient(self) -> bool:
        return self.correct is not None

    def evaluations(self, steps: int) -> int:
        """Denoiser evaluations per image: n (T + G)."""
        rounds = self.correct_when.count(steps) if self.correct else 0
        return self.particles * (steps + rounds)


@dataclass(frozen=True)
class Problem:
    """What is to be sampled: functions, grid, and who each image is.

    Attributes:
        denoise: one evaluation per row.
        grid: T + 1 points, from `Schedule.grid`.
        who: identity of each of the b images.
        shape: of one latent.
        value: reward of an estimate; None if the method needs none.
        eta: 0 deterministic ... 1 ancestral.
        cfg: guidance scale, which corrections scale with.
        chunk: most rows in one call of ``denoise`` or ``value``.
    """

    denoise: Denoise
    grid: Sequence[Time]
    who: Sequence[rng.Identity]
    shape: tuple[int, ...]
    value: Value | None = None
    eta: float = 1.0
    cfg: float = 1.0
    chunk: int = 16
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class State:
    """All that evolves. ``gather`` moves all of it.

    Attributes:
        x: (b, n, ...) latents.
        log_w: (b, n) log-weights.
        previous: (b, n) the value each particle was last weighted with (0 at the start).
        prediction: the cache, each (b, n, ...), valid at (x, step), or None.
        step: draws made so far.
    """

    x: Tensor
    log_w: Tensor
    previous: Tensor
    prediction: Prediction | None = None
    step: int = 0

    def gather(self, index: Tensor) -> State:
        """The state of particles ``index`` (b, m), for every field at once."""

        def take(v: Tensor) -> Tensor:
            return torch.stack([row[i] for row, i in zip(v, index, strict=True)])

        prediction = None if self.prediction is None else Prediction(*map(take, self.prediction))
        return replace(self, x=take(self.x), log_w=take(self.log_w), previous=take(self.previous), prediction=prediction)


class Info(NamedTuple):
    """What happened in a step, for progress, reports and tests.

    Attributes:
        step: draws made, after this one.
        evaluations, values: rows that went through the denoiser, and through decoder and reward.
        value: (b, n) reward estimates of this step, before selection, or None.
        parents: (b, n) the selection, or None.
        std: of the draw.
    """

    step: int
    evaluations: int
    values: int
    value: Tensor | None
    parents: Tensor | None
    std: float


def check(method: Method, steps: int, eta: float, cfg: float, has_gradient: bool | None) -> None:
    """Refuse what cannot work, in one sentence. ``has_gradient``: of the reward; None if there is no reward."""
    if method.particles < 1:
        raise TiltingError(f"particles must be at least 1, not {method.particles}")
    if not 0 <= eta <= 1:
        raise TiltingError(f"eta must be between 0 and 1, not {eta}")
    if has_gradient is None and (method.final == "reward" or method.select or method.correct):
        raise TiltingError(f"method {method.name} needs a reward")
    if eta == 0 and method.particles > 1 and method.select is not None:
        raise TiltingError(f"{method.name} selects in blocks, and at eta 0 the copies stay identical: use eta > 0 (1 is usual)")
    if eta == 0 and method.particles > 1 and method.start == "copy":
        raise TiltingError("copied starts at eta 0 give identical particles: use eta > 0 or independent starts")
    if method.correct is not None and has_gradient is False:
        raise TiltingError(f"{method.name} needs a differentiable reward: use code or bon with this one")
    if method.correct is not None and cfg == 1 and getattr(method.correct, "rescale", False):
        raise TiltingError(f"{method.name} scales its gradient by the CFG correction, which cfg 1 does not have: use cfg > 1")


def start(problem: Problem, method: Method, latents: Tensor | None = None) -> State:
    """x_T for every particle. ``latents`` (b, ...) or (b, n, ...) replaces the noise (of particle 0, or of all)."""
    b, n = len(problem.who), method.particles
    x = rng.normal(problem.who, n, problem.shape, step=0)
    if latents is not None:
        given = latents.detach().to(x)
        if given.shape == (b, *problem.shape):
            x[:, 0] = given
        elif given.shape == x.shape:
            x = given.clone()
        else:
            raise TiltingError(f"latents must have shape {(b, *problem.shape)} or {tuple(x.shape)}, not {tuple(given.shape)}")
    if method.start == "copy":
        x = x[:, :1].expand_as(x).clone()
    x = x.to(problem.device, problem.dtype)
    zeros = torch.zeros(b, n, dtype=torch.float64, device=x.device)
    return State(x, zeros, zeros.clone())


def in_chunks(function: Callable[..., tuple[Tensor, ...]], chunk: int, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """Apply a function of (x, rows) in chunks of rows and put its outputs together."""
    if len(x) <= chunk:
        return function(x, rows)
    parts = [function(a, r) for a, r in zip(x.split(chunk), rows.split(chunk), strict=True)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _flat(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    b, n = x.shape[:2]
    return x.flatten(0, 1), torch.arange(b, device=x.device).repeat_interleave(n)


def evaluate(problem: Problem, x: Tensor, t: Time) -> Prediction:
    """The denoiser at x (b, n, ...), in chunks."""
    flat, rows = _flat(problem, x)
    parts = in_chunks(lambda a, r: tuple(problem.denoise(a, t, r)), problem.chunk, flat, rows)
    return Prediction(*(p.reshape(x.shape) for p in parts))


def evaluate_value(problem: Problem, x0: Tensor) -> Tensor:
    """The reward (b, n) of clean latents or estimates x0 (b, n, ...), in chunks."""
    value = problem.value
    if value is None:
        raise TiltingError("this method needs a reward")
    flat, rows = _flat(problem, x0)
    (scores,) = in_chunks(lambda a, r: (value(a, r).detach(),), problem.chunk, flat, rows)
    return scores.reshape(x0.shape[:2]).double()


def _correct(problem: Problem, method: Method, x: Tensor, t: Time) -> Tensor:
    correct, value = method.correct, problem.value
    if correct is None or value is None:
        raise TiltingError(f"method {method.name} needs a reward")
    flat, rows = _flat(problem, x)
    (moved,) = in_chunks(
        lambda a, r: (correct(a, t, r, problem.denoise, value, problem.cfg)[0].detach(),), problem.chunk, flat, rows
    )
    return moved.reshape(x.shape)


def sample(problem: Problem, method: Method, state: State | None = None) -> Iterator[tuple[State, Info]]:
    """Draw the chain. Yields after every draw; the last State holds x_0.

    Args:
        problem: what is sampled.
        method: how.
        state: where to go on from; default `start`.
    """
    state = start(problem, method) if state is None else state
    steps = len(problem.grid) - 1
    for i in range(state.step, steps):
        t, s = problem.grid[i], problem.grid[i + 1]
        rows, values, value, parents = state.x.shape[0] * state.x.shape[1], 0, None, None
        evaluations = 0
        if method.correct is not None and method.correct_when(i, steps):
            state = replace(state, x=_correct(problem, method, state.x, t), prediction=None)
            evaluations, values = evaluations + rows, values + rows
        if state.prediction is None:
            state = replace(state, prediction=evaluate(problem, state.x, t))
            evaluations += rows
        assert state.prediction is not None
        if method.select is not None and method.select_when(i, steps):
            value = evaluate_value(problem, state.prediction.x0)
            values += rows
            uniforms = rng.uniform(problem.who, value.shape[1], i).to(value.device)
            parents, log_w = method.select(value, state.previous, state.log_w, uniforms)
            state = replace(state, previous=value)
            if parents is not None:
                state = state.gather(parents)
            state = replace(state, log_w=log_w)
        assert state.prediction is not None
        kernel = transition(state.prediction, t, s, problem.eta)
        x = kernel.mean
        if kernel.std > 0:
            noise = rng.normal(problem.who, x.shape[1], problem.shape, step=i + 1)
            x = x + kernel.std * noise.to(x)
        state = replace(state, x=x, prediction=None, step=i + 1)
        yield state, Info(i + 1, evaluations, values, value, parents, kernel.std)


class Final(NamedTuple):
    """The kept particles.

    Attributes:
        x: (b, m, ...) clean latents, m = 1 unless ``final`` is "all".
        value: (b, n) the reward of every particle's real image, or None where no reward was needed.
        log_w: (b, n) final log-weights (smc: including the last step's increment).
        kept: (b,) the kept particle, or None for "all".
    """

    x: Tensor
    value: Tensor | None
    log_w: Tensor
    kept: Tensor | None


def finish(problem: Problem, method: Method, state: State) -> Final:
    """Weigh and rank the finished particles on their real images."""
    b = state.x.shape[0]
    value, log_w = None, state.log_w
    if method.final == "reward" or (problem.value is not None and method.final != "first"):
        value = evaluate_value(problem, state.x)
    if isinstance(method.select, Smc) and value is not None:
        log_w = method.select.weigh(value, state.previous, log_w)
    if method.final == "all":
        return Final(state.x, value, log_w, None)
    if method.final == "first":
        index = torch.zeros(b, dtype=torch.long, device=state.x.device)
    else:
        index = (log_w if method.final == "weight" or value is None else value).argmax(1)
    return Final(state.gather(index[:, None]).x, value, log_w, index)
