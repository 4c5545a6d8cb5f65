"""Optimisation of the starting noise by back-propagation through the whole chain, with one checkpoint a step.

    ReNO    x_T <- x_T + lr ∇[ r(D(x_0(x_T))) + w log p(|x_T|) ],  Nesterov momentum .9, gradient clipped, the best kept
    DOODL   Adam on x_T, which is brought back to norm sqrt(d) after each update

log p(|x|) = (d - 1) log |x| - |x|² / 2 up to a constant: the chi density of a Gaussian's norm (Eyring et al. 2024; DOODL,
Wallace et al. 2023, as in App. A.3 of Clark et al. 2024). At eta > 0 the chain's own noise is keyed and stays the same in
every iteration, so x_0 is a function of x_T. Norms are per image, so that images of a batch do not interact. From a picture
(SDEdit) the noise n of α c + σ n is optimised. For a black-box reward only ∇_{x_0} r is a zero-order estimate: the chain is
differentiated as usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from tilting import rng
from tilting.guidance.value_and_grad import Estimator, GradientContext, reward_grad, vjp
from tilting.lazy import torch
from tilting.method import Method
from tilting.schedule import transition
from tilting.state import Info, Problem, State, Tally, rms_of, to_float64, value_of
from tilting.types import TiltingError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Optimise:
    """Gradient ascent on x_T.

    Attributes:
        iterations: evaluations of x_0; each but the last is followed by an update, and the best x_0 is kept.
        rate: learning rate.
        rule: "nesterov" (ReNO) or "adam" (DOODL).
        prior: weight of log p(|x_T|).
        clip: maximum norm of an image's gradient, or None.
        renormalise: bring x_T back to norm sqrt(d) after each update (DOODL).
        probes: N' antithetic pairs around x_0, for black-box rewards; None back-propagates.
        sigma: size of a probe, in units of x_T's noise.
    """

    iterations: int = 50
    rate: float = 5.0
    rule: Literal["nesterov", "adam"] = "nesterov"
    prior: float = 0.01
    clip: float | None = 0.1
    renormalise: bool = False
    probes: int | None = None
    sigma: float = 0.1
    stochastic = False
    may_cost_less = False
    parallel = False

    def __post_init__(self) -> None:
        if self.iterations < 2:
            raise TiltingError(f"iterations must be at least 2, the first being of x_T as it is, not {self.iterations}")

    @property
    def needs_reward_gradient(self) -> bool:
        """Whether the reward's own gradient is needed."""
        return self.probes is None

    def ticks(self, steps: int) -> int:
        """How often it yields."""
        return self.iterations

    def __call__(self, problem: Problem, method: Method, state: State) -> Iterator[tuple[State, Info]]:
        """Yields after every iteration; the state's x is the best x_0 so far, (b, 1, ...)."""
        steps, b, tally = len(problem.grid) - 1, len(problem.who), Tally()
        problem = tally.counting(problem)
        begin = Begin.of(problem, state)
        start = begin.noise.requires_grad_(True)
        make = {"nesterov": self._nesterov, "adam": self._adam}[self.rule]
        optimiser = make(start)
        best, kept = torch.full((b,), -torch.inf, dtype=torch.float64, device="cpu"), start.detach().clone()
        for k in range(self.iterations):
            scores, seen, last = [], [], k == self.iterations - 1
            start.grad = torch.zeros_like(start)
            for rows in torch.arange(b, device="cpu").split(problem.chunk):
                with torch.set_grad_enabled(not last):
                    x = start[rows].detach().requires_grad_(not last)
                    clean = rollout(problem, begin.at(x, rows), rows)
                    value = value_of(problem)(clean if self.needs_reward_gradient else clean.detach(), rows)
                    if not last:
                        (down,) = torch.autograd.grad(-self.prior * log_norm(x).sum(), x)
                        up = self._reward_grad(problem, value, clean, rows, k)
                        start.grad[rows] = down - vjp(up, clean, x, rows)
                value = to_float64(value.detach())
                better = value > best[rows]
                best[rows[better]], kept[rows[better]] = value[better], clean.detach()[better]
                scores.append(value)
                seen.append(clean.detach())
            before, pushed = start.detach().clone(), None
            if not last:
                self._update(start, optimiser)
                pushed = rms_of((start.detach() - before)[:, None])
            state = replace(state.moved(kept[:, None].clone()), step=steps if last else 0)  # later rounds write into ``kept``
            looked = torch.cat(scores)[:, None], None, 0.0, torch.cat(seen)[:, None]
            yield state, Info(k + 1, *tally.take(), *looked, guided=pushed)

    def _reward_grad(self, problem: Problem, value: Tensor, clean: Tensor, rows: Tensor, k: int) -> Tensor:
        """∇_{x_0} of the reward at estimates (m, ...); a zero-order one has probes keyed by image and iteration."""
        if self.needs_reward_gradient:
            return reward_grad(value, clean, rows)
        clean = clean.detach()

        def noise(purpose: str, count: int) -> Tensor:
            shape = (count, *problem.shape)
            keys = [rng.generator(problem.who[int(r)], 0, k, f"{purpose}/optimise") for r in rows]
            return torch.stack([torch.randn(shape, generator=key, device="cpu") for key in keys]).to(clean.device)

        t = problem.grid[0]._replace(sigma=1.0)
        context = GradientContext(clean, t, rows, problem.denoise, value_of(problem), problem.cfg, noise, problem.chunk)
        return Estimator(probes=self.probes, sigma=self.sigma).clean(context, clean)

    def _update(self, start: Tensor, optimiser: torch.optim.Optimizer) -> None:
        """A step along the gradient that ``start`` holds, each image's clipped by itself."""
        assert start.grad is not None
        if self.clip is not None:
            start.grad *= (self.clip / (norms(start.grad) + 1e-8)).clamp(max=1)
        optimiser.step()
        if self.renormalise:
            with torch.no_grad():
                start *= start[0].numel() ** 0.5 / norms(start)

    def _nesterov(self, x: Tensor) -> torch.optim.Optimizer:
        return torch.optim.SGD([x], lr=self.rate, momentum=0.9, nesterov=True)

    def _adam(self, x: Tensor) -> torch.optim.Optimizer:
        return torch.optim.Adam([x], lr=self.rate)


class Begin(NamedTuple):
    """The start of a chain, around + sigma · noise.

    Attributes:
        noise: (b, ...), which is optimised.
        around: (b, ...) α c of latents c of a picture, or None.
        sigma: 1 without a picture.
    """

    noise: Tensor
    around: Tensor | None
    sigma: float

    @staticmethod
    def of(problem: Problem, state: State) -> Begin:
        """The start of a run, from its first state."""
        x = state.x[:, 0].detach().clone()
        if state.around is None:
            return Begin(x, None, 1.0)
        around, sigma = state.around.to(x), problem.grid[0].sigma
        return Begin((x - around) / sigma, around, sigma)

    def at(self, noise: Tensor, rows: Tensor) -> Tensor:
        """x of noise (m, ...) of these rows."""
        return noise if self.around is None else self.around[rows] + self.sigma * noise


def rollout(problem: Problem, x: Tensor, rows: Tensor) -> Tensor:
    """x_0 (m, ...) of x_T (m, ...), differentiable; activations are recomputed step by step."""
    who = [problem.who[int(r)] for r in rows]
    for i, (t, s) in enumerate(zip(problem.grid, problem.grid[1:], strict=False)):
        noise = rng.normal(who, 1, problem.shape, i + 1)[:, 0].to(x)

        def step(x: Tensor, t=t, s=s, noise=noise) -> Tensor:
            kernel = transition(problem.denoise(x, t, rows), t, s, problem.eta, problem.law)
            return kernel.mean + kernel.std * noise

        x = torch.utils.checkpoint.checkpoint(step, x, use_reentrant=False)  # type: ignore[assignment]
    return x


def norms(x: Tensor) -> Tensor:
    """|x| of each row, (m, 1, ..., 1)."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))


def log_norm(x: Tensor) -> Tensor:
    """log of the chi density of |x|, up to a constant, (m,)."""
    square = x.flatten(1).square().sum(1)
    return (x[0].numel() - 1) * 0.5 * square.log() - 0.5 * square
