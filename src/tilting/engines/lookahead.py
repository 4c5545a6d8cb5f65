"""Gradient-free guidance by look-ahead samples (LiDAR; Kim et al. 2026, arXiv 2602.03211).

    x_0^i ~ p by a few steps, i = 1 .. M;   r_i = r(D(x_0^i))
    w_i = softmax_i(log N(x_t; α x_0^i, σ² I)),   w*_i = softmax_i(log N(x_t; α x_0^i, σ² I) + r_i / β)
    x0* = x0(x_t) + s Σ_i (w*_i - w_i) x_0^i

The sum estimates (σ²/α) ∇_{x_t} log E[exp(r(x_0) / β) | x_t] from M samples, so that at s = 1 a step uses the tilted posterior
mean E*[x_0 | x_t], exactly as M grows. In many dimensions both softmaxes concentrate on one sample at low noise, and guidance
ends there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tilting import rng
from tilting.method import Method
from tilting.schedule import step_std, transition
from tilting.state import Info, Problem, State, Tally, evaluate, evaluate_value, to_float64
from tilting.types import Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Lookahead:
    """A chain guided by look-ahead samples.

    Attributes:
        samples: M per image, shared by its particles.
        steps: steps of their deterministic chain on points of the run's grid, at most those of the run.
        beta: β.
        scale: s.
    """

    samples: int = 8
    steps: int = 3
    beta: float = 1.0
    scale: float = 1.0
    needs_reward_gradient = False
    stochastic = False
    may_cost_less = False

    def ticks(self, steps: int) -> int:
        """How often it yields."""
        return 1 + steps

    def __call__(self, problem: Problem, method: Method, state: State) -> Iterator[tuple[State, Info]]:
        """Yields after the look ahead and after every step; x is (b, n, ...)."""
        steps, tally = len(problem.grid) - 1, Tally()
        problem = tally.counting(problem)
        ahead = self._ahead(problem, state)
        value = evaluate_value(problem, ahead)
        yield state, Info(0, *tally.take(), value, None, 0.0)
        for i in range(steps):
            t, s = problem.grid[i], problem.grid[i + 1]
            kernel = transition(
                self._guided(state.x, evaluate(problem, state.x, t), t, ahead, value), t, s, problem.eta, problem.law
            )
            x, std = kernel.mean, step_std(t, s, problem.eta, problem.law)
            if std > 0:
                x = x + std * rng.normal(problem.who, x.shape[1], problem.shape, i + 1).to(x)
            state = replace(state.moved(x), step=i + 1)
            yield state, Info(i + 1, *tally.take(), None, None, std)

    def _ahead(self, problem: Problem, state: State) -> Tensor:
        """Look-ahead samples (b, M, ...) by a chain of few steps."""
        steps = len(problem.grid) - 1
        few = min(self.steps, steps)
        grid = [problem.grid[round(k * steps / few)] for k in range(few + 1)]
        x = rng.normal(problem.who, self.samples, problem.shape, 0, "lookahead").to(state.x)
        if state.around is not None:
            x = state.around.to(x)[:, None] + grid[0].sigma * x
        for t, s in itertools.pairwise(grid):
            x = transition(evaluate(problem, x, t), t, s, 0.0).mean
        return x

    def _guided(self, x: Tensor, prediction: Prediction, t: Time, ahead: Tensor, value: Tensor) -> Prediction:
        far, seen = to_float64(ahead).flatten(2), to_float64(x).flatten(2)
        logits = (t.alpha * seen @ far.mT - 0.5 * t.alpha**2 * far.square().sum(2)[:, None]) / t.sigma**2
        more = (logits + value[:, None] / self.beta).softmax(2) - logits.softmax(2)
        move = self.scale * (more @ far).reshape(x.shape).to(x)
        return Prediction(prediction.eps - t.alpha / t.sigma * move, prediction.x0 + move, prediction.correction)
