"""The sampling problem, the state of a chain, its start, and network evaluations in chunks of bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tilting import rng
from tilting.lazy import torch
from tilting.method import Method
from tilting.schedule import Law
from tilting.select import Memory
from tilting.types import Denoise, NoisyValueFn, Prediction, RewardError, TiltingError, Time, ValueFn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """What to sample: functions, time grid, and the identity of each image.

    Attributes:
        denoise: the denoiser, one evaluation per row.
        grid: T + 1 points from `Schedule.grid`; the last part of it to start from a noised image.
        who: identity of each of the b images.
        shape: shape of one latent.
        value: reward of an estimate; None if the method needs none.
        noisy: reward of latents x_t themselves; if given, selections use it instead of ``value``.
        eta: 0 deterministic ... 1 ancestral.
        cfg: guidance scale, which corrections scale with.
        chunk: maximum number of rows in one call of ``denoise`` or ``value``.
        per_particle: pass ``denoise`` the index of the particle (image · n + its place) instead of the image's, so that the
            prompts of an image's particles may differ.
        law: distribution of the noise of a step.
        over: processes that share the rows of every call; each of them takes the same decisions.
    """

    denoise: Denoise
    grid: Sequence[Time]
    who: Sequence[rng.Identity]
    shape: tuple[int, ...]
    value: ValueFn | None = None
    eta: float = 1.0
    cfg: float = 1.0
    chunk: int = 16
    device: torch.device | str = "cpu"
    dtype: torch.dtype = field(default_factory=lambda: torch.float32)
    per_particle: bool = False
    law: Law = "posterior"
    over: ProcessGroup | None = None
    noisy: NoisyValueFn | None = None


@dataclass(frozen=True)
class State:
    """Everything that evolves along a chain; `gather` permutes all of it.

    Attributes:
        x: (b, n, ...) latents, on the problem's device.
        log_w: (b, n) log-weights. They, values, memory and indices are float64 on the CPU whatever the device of x.
        memory: each particle's values so far.
        prediction, value, gradient: cache of the last evaluation at (x, step), or None.
        step: steps made so far.
        left: (b,) children that a rollover budget has saved, or None.
        around: (b, ...) α times the latents of the picture that the chain started from (SDEdit), or None.
    """

    x: Tensor
    log_w: Tensor
    memory: Memory
    prediction: Prediction | None = None
    value: Tensor | None = None
    gradient: Tensor | None = None
    step: int = 0
    left: Tensor | None = None
    around: Tensor | None = None

    def gather(self, index: Tensor) -> State:
        """The state of the particles ``index`` (b, m) of each image."""

        def take(v: Tensor) -> Tensor:
            mine = torch.arange(len(v), device=v.device)[:, None]
            return v[mine, index.to(v.device, non_blocking=v.is_cuda)]

        return replace(
            self,
            x=take(self.x),
            log_w=take(self.log_w),
            memory=Memory(*map(take, self.memory)),
            prediction=None if self.prediction is None else Prediction(*map(take, self.prediction)),
            value=None if self.value is None else take(self.value),
            gradient=None if self.gradient is None else take(self.gradient),
        )

    def moved(self, x: Tensor) -> State:
        """The state at other latents, without the cache."""
        return replace(self, x=x, prediction=None, value=None, gradient=None)


class Info(NamedTuple):
    """What happened in a step, for progress, reports and tests.

    Attributes:
        step: steps made, including this one.
        evaluations, values: rows that went through the denoiser, and through decoder and reward.
        value: (b, n) reward of the estimates of this step, before selection, or None.
        parents: (b, m) index of the parent of each particle after selection, -1 for one that is unchanged; None if all are.
        std: standard deviation of the step's noise.
        x0: (b, n, ...) estimates of this step, before selection; None if none was computed.
        log_w: (b, n) log-weights that the selection sampled from, or None.
        moved: (b, n) root mean square of the correction of each particle before the estimate, or None.
        guided: (b, m) root mean square of the move by guides after selection, or None.
    """

    step: int
    evaluations: int
    values: int
    value: Tensor | None
    parents: Tensor | None
    std: float
    x0: Tensor | None = None
    log_w: Tensor | None = None
    moved: Tensor | None = None
    guided: Tensor | None = None


@dataclass
class Tally:
    """Counts rows that go through the denoiser, and through decoder and reward."""

    evaluations: int = 0
    values: int = 0

    def counting(self, problem: Problem) -> Problem:
        """The same problem with functions that count their calls here."""

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            self.evaluations += len(x)
            return problem.denoise(x, t, rows)

        def value(x0: Tensor, rows: Tensor) -> Tensor:
            assert problem.value is not None
            self.values += len(x0)
            return problem.value(x0, rows)

        def noisy(x: Tensor, t: Time, rows: Tensor) -> Tensor:
            assert problem.noisy is not None
            self.values += len(x)
            return problem.noisy(x, t, rows)

        counted = {"value": None if problem.value is None else value, "noisy": None if problem.noisy is None else noisy}
        return replace(problem, denoise=denoise, **counted)

    def take(self) -> tuple[int, int]:
        """Return both counts and reset them."""
        paid, self.evaluations, self.values = (self.evaluations, self.values), 0, 0
        return paid


def start(problem: Problem, method: Method, latents: Tensor | None = None) -> State:
    """The state at x_T. ``latents`` (b, ...) replaces the noise of particle 0, (b, n, ...) that of all particles."""
    b, n = len(problem.who), method.particles_at(0, len(problem.grid) - 1)
    x = method.spread * rng.normal(problem.who, n, problem.shape, step=0)
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
    return State(x, torch.zeros(b, n, dtype=torch.float64, device="cpu"), Memory.blank(b, n))


def start_from(problem: Problem, method: Method, clean: Tensor) -> State:
    """Clean latents (b, ...) noised to the grid's first point (SDEdit, Meng et al. 2022), by each particle's own x_T noise."""
    noise = start(replace(problem, dtype=torch.float32), method)
    first = problem.grid[0]
    around = first.alpha * clean.to(noise.x)
    return replace(noise, x=(around[:, None] + first.sigma * noise.x).to(problem.dtype), around=around)


class ProcessGroup(Protocol):
    """Processes that share the rows of a batch, such as `tilting.runs.processes.Processes`."""

    def map_rows(self, function: Callable[..., tuple[Tensor, ...]], *columns: Tensor) -> tuple[Tensor, ...]: ...

    def all_gather_rows(self, mine: Sequence[Tensor]) -> tuple[Tensor, ...]: ...

    def all_gather(self, value: Any) -> list[Any]: ...


def in_chunks(
    function: Callable[..., tuple[Tensor, ...]], chunk: int, *columns: Tensor, over: ProcessGroup | None = None
) -> tuple[Tensor, ...]:
    """Apply a function to parallel columns in chunks of rows, shared among processes if given, and concatenate its outputs."""
    if over is not None:
        return over.map_rows(lambda *mine: in_chunks(function, chunk, *mine), *columns)
    if len(columns[0]) <= chunk:
        return function(*columns)
    parts = [function(*part) for part in zip(*(c.split(chunk) for c in columns), strict=True)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


class Rows(NamedTuple):
    """Latents as flat rows: x (b·n, ...), the image index of each row, and its place. The indices stay on the CPU, where they
    look up prompts and keys: reading them from a device would synchronise at every call."""

    x: Tensor
    rows: Tensor
    place: Tensor


def flat(x: Tensor) -> Rows:
    """Rows of (b, n, ...)."""
    b, n = x.shape[:2]
    place = torch.arange(b * n, device="cpu")
    return Rows(x.flatten(0, 1), place // n, place)


def evaluate(problem: Problem, x: Tensor, t: Time) -> Prediction:
    """The denoiser at x (b, n, ...), in chunks."""
    x_, rows, place = flat(x)
    parts = in_chunks(
        lambda a, r: tuple(problem.denoise(a, t, r)),
        problem.chunk,
        x_,
        place if problem.per_particle else rows,
        over=problem.over,
    )
    return Prediction(*(p.reshape(x.shape) for p in parts))


def evaluate_value(problem: Problem, x0: Tensor) -> Tensor:
    """The reward (b, n) of clean latents or estimates x0 (b, n, ...), in chunks."""
    inner = problem.value
    if inner is None:
        raise TiltingError(NO_REWARD)
    (scores,) = in_chunks(lambda a, r: (inner(a, r).detach(),), problem.chunk, *flat(x0)[:2], over=problem.over)
    value = to_float64(scores.reshape(x0.shape[:2]))
    _check_finite(value.flatten(), torch.arange(value.numel(), device="cpu") // value.shape[1])
    return value


def evaluate_noisy(problem: Problem, x: Tensor, t: Time) -> Tensor:
    """The reward (b, n) of latents x (b, n, ...) at their own time, in chunks."""
    assert problem.noisy is not None
    return evaluate_value(replace(problem, value=partial(_at, problem.noisy, t)), x)


def _at(noisy: NoisyValueFn, t: Time, x: Tensor, rows: Tensor) -> Tensor:
    return noisy(x, t, rows)


def rms_of(x: Tensor) -> Tensor:
    """Root mean square of each particle's (b, n, ...), (b, n)."""
    return x.flatten(2).float().square().mean(2).sqrt()


def to_float64(values: Tensor) -> Tensor:
    """Values in float64 on the CPU, where selection does its arithmetic: some devices have no float64."""
    return values.cpu().double()


def value_of(problem: Problem) -> ValueFn:
    """The problem's value function, which raises for a value that is not finite, naming the image, and without a reward."""
    inner = problem.value

    def value(x0: Tensor, rows: Tensor) -> Tensor:
        if inner is None:
            raise TiltingError(NO_REWARD)
        scores = inner(x0, rows)
        _check_finite(scores.detach(), rows)
        return scores

    return value


NO_REWARD = "this method needs a reward"


def _check_finite(scores: Tensor, rows: Tensor) -> None:
    """Refuse a value that is not finite. Raises RewardError with the image's index."""
    if not scores.isfinite().all():
        first = int((~scores.isfinite()).nonzero()[0, 0])
        raise RewardError(f"the reward of an estimate is {scores[first].item()}, not a finite number", int(rows[first]))
