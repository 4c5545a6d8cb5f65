"""Gradient-free search (Ma et al. 2025, arXiv 2501.09732) over starting noise and over paths.

    noise    N neighbours sqrt(1 - λ²) n + λ z of a pivot n through the whole chain; the best of all is the next pivot
    paths    M samples at a noise level; each is renoised N times and denoised again, and the best M of all N M continue

A neighbour of a standard normal n is standard normal for any λ; the paper adds a step of length λ without renormalising. At
eta > 0 the noise of the chain is the same in every iteration of the noise search, so x_0 is a function of x_T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tilting import rng
from tilting.engines.optimise import Begin, rollout
from tilting.lazy import torch
from tilting.method import Method
from tilting.schedule import step_std, transition
from tilting.state import Info, Problem, State, Tally, evaluate, evaluate_value, flat, in_chunks, to_float64, value_of
from tilting.types import TiltingError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NoiseSearch:
    """Hill climbing on x_T over random neighbours.

    Attributes:
        iterations: rounds after the evaluation of the first x_T.
        neighbours: N of each.
        radius: λ, from 0 (the pivot itself) to 1 (random search).
    """

    iterations: int = 4
    neighbours: int = 4
    radius: float = 0.5
    needs_reward_gradient = False
    stochastic = False
    may_cost_less = False

    def ticks(self, steps: int) -> int:
        """How often it yields."""
        return self.iterations + 1

    def __call__(self, problem: Problem, method: Method, state: State) -> Iterator[tuple[State, Info]]:
        """Yields after every round; the state's x is the best x_0 so far, (b, 1, ...)."""
        steps, tally = len(problem.grid) - 1, Tally()
        problem = tally.counting(problem)
        value, begin = value_of(problem), Begin.of(problem, state)
        pivot, best, kept = begin.noise, None, begin.noise
        for k in range(self.iterations + 1):
            tried = pivot[:, None] if k == 0 else self._around(problem, pivot, k)
            x, rows, _ = flat(tried)

            def look(a: Tensor, r: Tensor) -> tuple[Tensor, ...]:
                with torch.no_grad():
                    clean = rollout(problem, begin.at(a, r), r)
                    return to_float64(value(clean, r).detach()), clean

            scores, clean = in_chunks(look, problem.chunk, x, rows, over=problem.over)
            scores, clean = scores.reshape(tried.shape[:2]), clean.reshape(tried.shape)
            top = scores.argmax(1)
            mine = torch.arange(len(top), device="cpu")
            better = scores[mine, top] > best if best is not None else torch.ones(len(top), dtype=torch.bool, device="cpu")
            best = scores[mine, top] if best is None else torch.where(better, scores[mine, top], best)
            shape = (-1, *[1] * (pivot.dim() - 1))
            take = better.to(pivot.device).reshape(shape)
            pivot, kept = torch.where(take, tried[mine, top], pivot), torch.where(take, clean[mine, top], kept)
            last = k == self.iterations
            state = replace(state.moved(kept[:, None]), step=steps if last else 0)
            parents = torch.where(better, top, -1)[:, None]
            yield state, Info(k + 1, *tally.take(), scores, parents, 0.0, clean)

    def _around(self, problem: Problem, pivot: Tensor, k: int) -> Tensor:
        """The neighbours (b, N, ...) of a round."""
        noise = rng.normal(problem.who, self.neighbours, problem.shape, k, "neighbour").to(pivot)
        return math.sqrt(1 - self.radius**2) * pivot[:, None] + self.radius * noise


@dataclass(frozen=True)
class PathSearch:
    """Beam search over a chain, by renoising and denoising again.

    Attributes:
        branches: N for each of the M particles.
        forward: grid steps that a round renoises.
        backward: grid steps that a round then denoises; more than ``forward``.
        start: share of the chain before the first round.
    """

    branches: int = 2
    forward: int = 1
    backward: int = 2
    start: float = 0.2
    needs_reward_gradient = False
    stochastic = False
    may_cost_less = False

    def __post_init__(self) -> None:
        if self.backward <= self.forward:
            raise TiltingError(f"a round must draw more steps than it noises back, not {self.backward} after {self.forward}")

    def rounds(self, steps: int) -> list[tuple[int, int]]:
        """The grid points (first, last) between which each round denoises."""
        at, found = self.begin(steps), []
        while at < steps:
            first = max(0, at - self.forward)
            at = min(first + self.backward, steps)
            found.append((first, at))
        return found

    def begin(self, steps: int) -> int:
        """The grid point from which the first round renoises."""
        return min(max(1, round(self.start * steps)), steps - 1)

    def ticks(self, steps: int) -> int:
        """How often it yields."""
        return 1 + len(self.rounds(steps)) if steps > 1 else 1

    def __call__(self, problem: Problem, method: Method, state: State) -> Iterator[tuple[State, Info]]:
        """Yields after the beginning and every round; x is (b, M, ...)."""
        steps, tally, m = len(problem.grid) - 1, Tally(), state.x.shape[1]
        problem = tally.counting(problem)
        if steps == 1:
            state, clean = self._draw(problem, state, 0, 1, "begin")
            yield state, Info(1, *tally.take(), None, None, 0.0, clean)
            return
        state, clean = self._draw(problem, state, 0, self.begin(steps), "begin")
        yield state, Info(state.step, *tally.take(), None, None, 0.0, clean)
        for k, (first, last) in enumerate(self.rounds(steps)):
            at, back = problem.grid[state.step], problem.grid[first]
            wide = state.gather(torch.arange(m, device="cpu").repeat_interleave(self.branches).expand(len(state.x), -1))
            ratio = back.alpha / at.alpha
            spread = math.sqrt(max(back.sigma**2 - (ratio * at.sigma) ** 2, 0.0))
            noise = rng.normal(problem.who, wide.x.shape[1], problem.shape, first, f"back{k}").to(wide.x)
            wide = replace(wide.moved(ratio * wide.x + spread * noise), step=first)
            wide, clean = self._draw(problem, wide, first, last, f"path{k}")
            value = evaluate_value(problem, clean)
            parents = value.argsort(dim=1, descending=True, stable=True)[:, :m]
            state = wide.gather(parents)
            yield state, Info(last, *tally.take(), value, parents, 0.0, clean)

    def _draw(self, problem: Problem, state: State, first: int, last: int, purpose: str) -> tuple[State, Tensor]:
        """The state at grid point ``last``, and the estimate of x_0 that its last step was made from."""
        x, clean = state.x, state.x
        for i in range(first, last):
            t, s = problem.grid[i], problem.grid[i + 1]
            prediction = evaluate(problem, x, t)
            kernel = transition(prediction, t, s, problem.eta, problem.law)
            x, clean = kernel.mean, prediction.x0
            if step_std(t, s, problem.eta, problem.law) > 0:
                x = x + kernel.std * rng.normal(problem.who, x.shape[1], problem.shape, i + 1, purpose).to(x)
        return replace(state.moved(x), step=last), clean
