"""A Markov chain on the starting noise: pCNL, the preconditioned Crank-Nicolson Langevin algorithm (Cotter et al. 2013).

    π(z) ∝ N(z; 0, I) exp(U(z)),   U = r(D(x0(x_T))) / β,   G = ∇_z U
    z' = ρ z + sqrt(1 - ρ²) (ξ + sqrt(ε)/2 G(z)),   ρ = (1 - ε/4) / (1 + ε/4),   ξ ~ N(0, I)
    accepted with probability min(1, exp(F(z', z) - F(z, z'))),
    F(z, z') = U(z) - ε/8 |G(z)|² + sqrt(ε)/2 ⟨(z' - ρ z) / sqrt(1 - ρ²), G(z)⟩

With G = 0 the proposal leaves N(0, I) invariant in any dimension; with the acceptance step the chain leaves π invariant. On
starting noise it is the Ψ-sampler of Yoon et al. 2025 (arXiv 2506.01320), whose code has these formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tilting import rng
from tilting.lazy import torch
from tilting.select import Select, SelectionInput
from tilting.state import Problem, State, to_float64
from tilting.types import TiltingError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pcnl:
    """An independent chain at x_T for every particle; sampling starts from its last point.

    Attributes:
        moves: proposals, each an evaluation, a decode and a reward call with a gradient; one more is for the first x_T.
        beta: β.
        step: ε, below 4.
    """

    moves: int = 4
    beta: float = 1.0
    step: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.step < 4:
            raise TiltingError(f"a step of pCNL lies between 0 and 4, not at {self.step}")

    def __call__(self, problem: Problem, select: Select | None, state: State, look: Callable[[State, int], State]) -> State:
        """The particles after their moves, with predictions and values; weights are not corrected for the moves."""
        now = look(state, 0)
        for k in range(self.moves):
            proposed = self._proposed(problem, now, k)
            then = look(now.moved(proposed), k + 1)
            ratio = self._toward(problem, then, now) - self._toward(problem, now, then)
            uniforms = rng.uniform(problem.who, now.x.shape[1], k, "pcnl/accept")  # not the noise's own words
            now = _either(uniforms.log() < ratio, then, now)
        if select is None:
            return now
        assert now.value is not None
        none = torch.empty(0, device="cpu")
        _, memory = select.weigh(SelectionInput(now.value, now.log_w, now.memory, none, 0.0, 0))
        return replace(now, memory=memory)

    @property
    def _rho(self) -> float:
        return (1 - self.step / 4) / (1 + self.step / 4)

    def _noise(self, problem: Problem, state: State) -> tuple[Tensor, Tensor]:
        """z and ∇_z U, both (b, n, ...)."""
        assert state.gradient is not None
        around, sigma = 0.0, 1.0
        if state.around is not None:
            around, sigma = state.around.to(state.x)[:, None], problem.grid[0].sigma
        return (state.x - around) / sigma, sigma * state.gradient / self.beta

    def _proposed(self, problem: Problem, state: State, k: int) -> Tensor:
        z, gradient = self._noise(problem, state)
        rho = self._rho
        fresh = rng.normal(problem.who, z.shape[1], problem.shape, k, "pcnl").to(z)
        moved = rho * z + (1 - rho**2) ** 0.5 * (fresh + 0.5 * self.step**0.5 * gradient)
        return state.x + (moved - z) * (1.0 if state.around is None else problem.grid[0].sigma)

    def _toward(self, problem: Problem, one: State, other: State) -> Tensor:
        """F of two points, (b, n)."""
        assert one.value is not None
        (z, gradient), (aim, _) = self._noise(problem, one), self._noise(problem, other)
        z, gradient, aim = (to_float64(v).flatten(2) for v in (z, gradient, aim))
        rho = self._rho
        along = ((aim - rho * z) / (1 - rho**2) ** 0.5 * gradient).sum(2)
        return one.value / self.beta - self.step / 8 * gradient.square().sum(2) + 0.5 * self.step**0.5 * along


def _either(first: Tensor, one: State, other: State) -> State:
    """``one`` where ``first`` (b, n), else ``other``."""

    def take(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(first.to(a.device).reshape(*first.shape, *[1] * (a.dim() - 2)), a, b)

    assert one.prediction is not None and other.prediction is not None
    assert one.value is not None and other.value is not None and one.gradient is not None and other.gradient is not None
    return replace(
        other,
        x=take(one.x, other.x),
        prediction=type(one.prediction)(*map(take, one.prediction, other.prediction)),
        value=take(one.value, other.value),
        gradient=take(one.gradient, other.gradient),
    )
