"""Selecting particles by value: greedy copies, multinomial draws, and importance-weighted resampling (SMC).

    greedy       the best particle, or the best few, are copied over the others  CoDe, Singh et al. 2025; beams, Oshima et al.
    multinomial  particles are drawn with P ∝ exp(value / τ), with replacement   CoDeX, Alg. 3; one draw for all: SVDD
    smc          log w += potential - previous potential; resample when ESS < threshold · n

The smc potential of a particle is λ_i r / β (difference), and with the final one exp(r(x_0) / β) the increments telescope:
with a proposal of known density the weighted particles are exact draws of the tilt of the same chain as n grows (TDS, Wu et
al. 2023; DAS, Kim et al. 2025, tempers by λ_i; FK steering, Singhal et al. 2025, has the maximum and the sum of the values so
far as well). Greedy and multinomial *add up* tilts with every block; their τ is not β.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

from tilting import weights
from tilting.lazy import torch
from tilting.types import TiltingError

if TYPE_CHECKING:
    from torch import Tensor


class Memory(NamedTuple):
    """The history of each particle that selections need, (b, n) each; it is gathered with the particles.

    Attributes:
        potential: log potential so far (0 at the start).
        best, total: maximum and sum of the values so far.
        level: the inverse temperature λ in [0, 1] of the last weighting.
    """

    potential: Tensor
    best: Tensor
    total: Tensor
    level: Tensor

    @classmethod
    def blank(cls, b: int, n: int, device: torch.device | str = "cpu") -> Memory:
        """The memory at the start, before any value."""
        zeros = torch.zeros(b, n, dtype=torch.float64, device=device)
        return cls(zeros, zeros - torch.inf, zeros.clone(), zeros.clone())


class SelectionInput(NamedTuple):
    """Input of a selection.

    Attributes:
        value: (b, n) reward of the estimates.
        log_w: (b, n) log-weights.
        memory: see `Memory`.
        uniforms: (b, m) random numbers in [0, 1), one for each of the m particles to select.
        done: fraction of the steps made; 1 at the end.
        draws: number of steps made.
    """

    value: Tensor
    log_w: Tensor
    memory: Memory
    uniforms: Tensor
    done: float
    draws: int


class Resampling(NamedTuple):
    """Result of a selection.

    Attributes:
        parents: (b, m) index of the parent of each new particle, or None if all are kept.
        log_w: (b, m) new log-weights.
        memory: (b, n) memory of the *old* particles, to be gathered with them.
    """

    parents: Tensor | None
    log_w: Tensor
    memory: Memory


class Select(Protocol):
    """A rule from values to parents. A subclass need only define the call.

    Attributes:
        importance_weighted: whether ``log_w`` are importance weights: the log-ratio of unguided and guided step is then added
            to them, and proposals without a density are refused.
    """

    importance_weighted: ClassVar[bool] = False

    @property
    def needs_reward(self) -> bool:
        """Whether it uses values; if not, it gets zeros and no reward is computed."""
        return True

    @property
    def one_winner(self) -> bool:
        """Whether all new particles are copies of one, so that one gradient serves all."""
        return False

    def __call__(self, seen: SelectionInput) -> Resampling: ...

    def weigh(self, seen: SelectionInput) -> tuple[Tensor, Memory]:
        """Log-weights (b, n) and memory updated with the values; at the end (done 1) these are of the decoded images."""
        return seen.log_w, seen.memory

    def drawn_by(self, seen: SelectionInput, memory: Memory) -> Tensor | None:
        """For reports: the log-weights (b, n) that parents are sampled from; None if unknown. ``memory`` is that of the
        selection's result."""
        return None

    def twist_scale(self, memory: Memory, draws: int) -> Tensor | None:
        """Factor (b, n) of the gradient in the proposal of the next step, after ``draws`` steps; None for 1."""
        return None


@dataclass(frozen=True)
class Greedy(Select):
    """Copy the best particles over all others.

    Attributes:
        beams: how many are kept, each copied equally often; ties go to the first.
    """

    beams: int = 1

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise TiltingError(f"beams must be at least 1, not {self.beams}")

    @property
    def one_winner(self) -> bool:
        return self.beams == 1

    def __call__(self, seen: SelectionInput) -> Resampling:
        m, kept = seen.uniforms.shape[1], min(self.beams, seen.value.shape[1])
        best = seen.value.sort(dim=1, descending=True, stable=True).indices[:, :kept]  # of equal ones the first
        place = torch.arange(m, device=best.device) % kept
        return Resampling(best[:, place], torch.zeros_like(seen.uniforms), seen.memory)

    def drawn_by(self, seen: SelectionInput, memory: Memory) -> Tensor:
        kept = min(self.beams, seen.value.shape[1])
        best = seen.value.sort(dim=1, descending=True, stable=True).indices[:, :kept]
        return torch.full_like(seen.value, -torch.inf).scatter(1, best, 0.0)


@dataclass(frozen=True)
class Multinomial(Select):
    """Draw particles with P ∝ exp(value / tau), with replacement.

    Attributes:
        tau: temperature, in the reward's own units; small is greedy.
        tau_end: temperature at the end of the run, reached geometrically; None keeps tau.
        shared: draw one parent for all particles of an image (SVDD) instead of one for each.
    """

    tau: float = 0.001
    tau_end: float | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        for tau in (self.tau, self.tau if self.tau_end is None else self.tau_end):
            if not tau > 0:
                raise TiltingError(f"tau must be positive, not {tau}; for the limit 0 select greedily")

    @property
    def one_winner(self) -> bool:
        return self.shared

    def temperature(self, done: float) -> float:
        """τ at a fraction ``done`` of the run."""
        return self.tau if self.tau_end is None else self.tau * (self.tau_end / self.tau) ** done

    def __call__(self, seen: SelectionInput) -> Resampling:
        probability = torch.softmax(self.drawn_by(seen, seen.memory), 1)
        uniforms = seen.uniforms[:, :1].expand_as(seen.uniforms) if self.shared else seen.uniforms
        return Resampling(weights.multinomial(probability, uniforms), torch.zeros_like(seen.uniforms), seen.memory)

    def drawn_by(self, seen: SelectionInput, memory: Memory) -> Tensor:
        return seen.value.double() / self.temperature(seen.done)


@dataclass(frozen=True)
class Smc(Select):
    """Importance weights towards exp(reward / beta), and resampling when they degenerate.

    Attributes:
        beta: temperature of the tilt p* ∝ p exp(r / beta); inf uses no reward and corrects for guides alone.
        ess_threshold: resample an image when its effective sample size falls below this fraction of n.
        potential: "difference" of values, or their "max" or "sum" so far (FK steering).
        temper: γ of λ_i = min((1 + γ)^i - 1, 1) (DAS); None has λ = 1 throughout.
        adaptive: instead, raise λ per image as far as the effective sample size stays at the threshold (DAS).
        scheme: "systematic", "ssp" (Srinivasan sampling process, DAS) or "multinomial" resampling.
    """

    beta: float = 1.0
    ess_threshold: float = 0.5
    potential: Literal["difference", "max", "sum"] = "difference"
    temper: float | None = None
    adaptive: bool = False
    scheme: Literal["systematic", "ssp", "multinomial"] = "systematic"
    importance_weighted = True

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise TiltingError(f"beta must be positive, not {self.beta}")
        if self.temper is not None and not self.temper > 0:
            raise TiltingError(f"temper must be positive, not {self.temper}")
        if not self.ess_threshold >= 0:
            raise TiltingError(f"ess_threshold must not be negative, not {self.ess_threshold}")
        if self.potential not in ("difference", "max", "sum"):
            raise TiltingError(f"a potential is difference, max or sum, not {self.potential!r}")
        if self.scheme not in ("systematic", "ssp", "multinomial"):
            raise TiltingError(f"a scheme is systematic, ssp or multinomial, not {self.scheme!r}")
        if (self.adaptive or self.temper is not None) and self.potential != "difference":
            raise TiltingError("only the difference potential can be tempered")

    @property
    def needs_reward(self) -> bool:
        return math.isfinite(self.beta)

    def level(self, draws: int) -> float:
        """λ after ``draws`` steps, if it is not adaptive."""
        return 1.0 if self.temper is None else min((1 + self.temper) ** draws - 1, 1.0)

    def twist_scale(self, memory: Memory, draws: int) -> Tensor | None:
        """λ of the next proposal (DAS): the next level of the schedule, or the adaptive one; None without tempering."""
        if self.adaptive:
            return memory.level
        return None if self.temper is None else torch.full_like(memory.level, self.level(draws + 1))

    def __call__(self, seen: SelectionInput) -> Resampling:
        log_w, memory = self.weigh(seen)
        n = seen.value.shape[1]
        room = 1.01 if self.adaptive else 1 - 1e-9  # the level just found sits on the bound; equal weights, rounded, on n
        low = weights.ess(log_w) < self.ess_threshold * n * room
        if not low.any():
            return Resampling(None, log_w, memory)
        p = weights.normalise(log_w.double())
        draw = {"systematic": weights.systematic, "ssp": weights.ssp, "multinomial": weights.multinomial}[self.scheme]
        drawn = draw(p, seen.uniforms[:, 0] if self.scheme == "systematic" else seen.uniforms)
        stay = torch.arange(n, device=seen.value.device).expand_as(drawn)
        # A resampled image keeps the mean weight, so that the product of means estimates the normalising constant.
        mean = weights.log_mean(log_w)[:, None].expand_as(log_w)
        return Resampling(torch.where(low[:, None], drawn, stay), torch.where(low[:, None], mean, log_w), memory)

    def drawn_by(self, seen: SelectionInput, memory: Memory) -> Tensor:
        return seen.log_w + memory.potential - seen.memory.potential

    def weigh(self, seen: SelectionInput) -> tuple[Tensor, Memory]:
        """See `Select`; at the end (done 1) the potential is r / β itself."""
        value, old = seen.value.double(), seen.memory
        best, total = torch.maximum(old.best, value), old.total + value
        level = torch.full_like(value, 1.0 if seen.done >= 1 else self.level(seen.draws))
        if seen.done >= 1 or self.potential == "difference":
            if self.adaptive and seen.done < 1:
                level = self._bisect(value, seen)
            potential = level * value / self.beta
        else:
            potential = old.potential + (best if self.potential == "max" else total) / self.beta
        gained = potential - old.potential  # first, so that equal values leave equal weights equal
        return seen.log_w + gained, Memory(potential, best, total, level)

    def _bisect(self, value: Tensor, seen: SelectionInput) -> Tensor:
        """The largest λ in [previous λ, 1] that keeps the ESS at the threshold, (b, n), equal within an image."""
        old = seen.memory
        low, high = old.level[:, :1].clone(), torch.ones_like(old.level[:, :1])
        wanted = self.ess_threshold * value.shape[1]

        def enough(level: Tensor) -> Tensor:
            return (weights.ess(seen.log_w + level * value / self.beta - old.potential) >= wanted)[:, None]

        fits = enough(high)
        for _ in range(40):
            middle = (low + high) / 2
            good = enough(middle)
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        return torch.where(fits, torch.ones_like(low), low).expand_as(value)
