"""What a chain is made of: the problem, the state that evolves, its start, and evaluations in chunks of bounded memory."""

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
    """What is to be sampled: functions, grid, and who each image is.

    Attributes:
        denoise: one evaluation per row.
        grid: T + 1 points, from `Schedule.grid`; a later part of it to go on from a noised image.
        who: identity of each of the b images.
        shape: of one latent.
        value: reward of an estimate; None if the method needs none.
        noisy: reward of latents at their own time, which selections see in place of the estimate's.
        eta: 0 deterministic ... 1 ancestral.
        cfg: guidance scale, which corrections scale with.
        chunk: most rows in one call of ``denoise`` or ``value``.
        per_particle: ``denoise`` is told the particle (image · n + its place) instead of the image, so that prompts may differ.
        law: of the noise of a step.
        over: processes that share the rows of every call; what is decided is decided alike by all.
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
    """All that evolves. ``gather`` moves all of it.

    Attributes:
        x: (b, n, ...) latents, on the problem's device.
        log_w: (b, n) log-weights; these, like values, memory and indices, are float64 on the CPU wherever latents are.
        memory: of each particle's values so far.
        prediction, value, gradient: the cache, valid at (x, step): what the last look saw, or None.
        step: draws made so far.
        left: (b,) children that rollover budgets have saved, or None.
        around: (b, ...) what of the first x is a picture's, α times its latents, where a run began from one; or None.
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
        """The state of particles ``index`` (b, m), for every field at once."""

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
        """Other latents: the cache is stale."""
        return replace(self, x=x, prediction=None, value=None, gradient=None)


class Info(NamedTuple):
    """What happened in a step, for progress, reports and tests.

    Attributes:
        step: draws made, after this one.
        evaluations, values: rows that went through the denoiser, and through decoder and reward.
        value: (b, n) reward estimates of this step, before selection, or None.
        parents: (b, m) of each particle that goes on, which of those seen it is, or -1 where it stays as it was; None: all do.
        std: of the draw.
        x0: (b, n, ...) the estimates that were looked at, before selection; None where nothing new was.
        log_w: (b, n) log-weights that the selection drew by, or None.
        moved: (b, n) root mean square of what a correction moved each particle by before it was looked at, or None.
        guided: (b, m) of what gradients moved each by after that, or None.
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
    """What was paid since it was last asked: rows that went through the denoiser, and through decoder and reward."""

    evaluations: int = 0
    values: int = 0

    def counting(self, problem: Problem) -> Problem:
        """The same problem, whose calls are counted here."""

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
        """Both, and begin again."""
        paid, self.evaluations, self.values = (self.evaluations, self.values), 0, 0
        return paid


def start(problem: Problem, method: Method, latents: Tensor | None = None) -> State:
    """x_T for every particle. ``latents`` (b, ...) or (b, n, ...) replaces the noise (of particle 0, or of all)."""
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
    """x at the grid's first point around clean latents (b, ...) (SDEdit, Meng et al. 2022), with every particle's own x_T
    noise."""
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
    """Apply a function of parallel columns in chunks of rows, which processes may share, and put its outputs together."""
    if over is not None:
        return over.map_rows(lambda *mine: in_chunks(function, chunk, *mine), *columns)
    if len(columns[0]) <= chunk:
        return function(*columns)
    parts = [function(*part) for part in zip(*(c.split(chunk) for c in columns), strict=True)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


class Rows(NamedTuple):
    """Latents as flat rows: (b·n, ...), the image of each, and its place. Who is who stays on the CPU, where prompts and keys
    are looked up by it: of a device it would be waited for at every call."""

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
    """The problem's value function; what it says is finite, or refused with the image it said it of. Without a reward, to ask
    it is an error."""
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
    """Refuse a value that is no number, with its image. Raises RewardError."""
    if not scores.isfinite().all():
        first = int((~scores.isfinite()).nonzero()[0, 0])
        raise RewardError(f"the reward of an estimate is {scores[first].item()}, not a finite number", int(rows[first]))
