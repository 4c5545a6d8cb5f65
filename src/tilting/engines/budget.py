"""Rollover budget forcing (Kim et al. 2025, arXiv 2503.19385).

At every step, children x_s of x_t are drawn one after another until the value of one exceeds the parent's; the rest of the
step's quota N rolls over to later steps. If the budget runs out, the best child is kept. A child's evaluation serves the next
step too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tilting import rng
from tilting.lazy import torch
from tilting.method import Method
from tilting.schedule import transition
from tilting.state import Info, Problem, State, Tally, in_chunks, to_float64, value_of
from tilting.types import Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """One particle per image with a quota of children per step.

    Attributes:
        quota: N, children per step on average; the whole run costs at most 1 + N (T - 1) evaluations an image.
    """

    quota: int = 4
    needs_reward_gradient = False
    stochastic = True
    may_cost_less = True

    def ticks(self, steps: int) -> int:
        """How often it yields."""
        return steps

    def __call__(self, problem: Problem, method: Method, state: State) -> Iterator[tuple[State, Info]]:
        """Yields after every step; x stays (b, 1, ...)."""
        steps, b, tally = len(problem.grid) - 1, len(problem.who), Tally()
        problem = tally.counting(problem)
        left = torch.zeros(b, dtype=torch.long, device="cpu") if state.left is None else state.left.clone()
        if state.prediction is None or state.value is None:
            prediction, value = _look(problem, state.x[:, 0], problem.grid[state.step], torch.arange(b, device="cpu"))
            state = replace(state, prediction=Prediction(*(p[:, None] for p in prediction)), value=value[:, None])
        for i in range(state.step, steps):
            t, s = problem.grid[i], problem.grid[i + 1]
            assert state.prediction is not None and state.value is not None
            parent = state.value[:, 0]
            kernel = transition(Prediction(*(p[:, 0] for p in state.prediction)), t, s, problem.eta, problem.law)
            if kernel.std == 0 or i == steps - 1:  # one child: identical ones, or x_0 itself, which has no next evaluation
                drawn = kernel.mean + kernel.std * _noise(problem.who, 0, problem.shape, i + 1).to(kernel.mean)
                state = replace(state.moved(drawn[:, None]), step=i + 1)
                yield state, Info(i + 1, *tally.take(), parent[:, None], None, kernel.std)
                continue
            left += self.quota
            x, prediction = kernel.mean.clone(), Prediction(*(torch.zeros_like(kernel.mean) for _ in range(3)))
            active, child = torch.arange(b, device="cpu"), 0
            best = torch.full_like(parent, -torch.inf)
            while len(active):
                who = [problem.who[int(j)] for j in active]
                noise = _noise(who, child, problem.shape, i + 1).to(kernel.mean)
                drawn = kernel.mean[active] + kernel.std * noise
                looked, value = _look(problem, drawn, s, active)
                left[active] -= 1
                better = value > best[active]
                rows = active[better]
                best[rows], x[rows] = value[better], drawn[better]
                for kept, new in zip(prediction, looked, strict=True):
                    kept[rows] = new[better]
                active = active[(best[active] <= parent[active]) & (left[active] > 0)]
                child += 1
            prediction = Prediction(*(p[:, None] for p in prediction))
            state = replace(state, x=x[:, None], prediction=prediction, value=best[:, None], step=i + 1, left=left.clone())
            yield state, Info(i + 1, *tally.take(), best[:, None], None, kernel.std, prediction.x0)


def _noise(who: Sequence[rng.Identity], child: int, shape: tuple[int, ...], step: int) -> Tensor:
    return torch.stack([torch.randn(shape, generator=rng.generator(w, child, step), device="cpu") for w in who])


def _look(problem: Problem, x: Tensor, t: Time, rows: Tensor) -> tuple[Prediction, Tensor]:
    """Prediction and value of rows, in chunks."""
    value = value_of(problem)

    def look(a: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        prediction = problem.denoise(a, t, r)
        return (to_float64(value(prediction.x0, r).detach()), *prediction)

    scores, *parts = in_chunks(look, problem.chunk, x, rows, over=problem.over)
    return Prediction(*parts), scores
