"""The sampling loop: a generator that draws x_T ... x_0 step by step and yields (State, Info) after every step.

    begin                         at x_T only, e.g. the Ψ-sampler's Markov chain
    for each step, for k in 1..K:
        correct x (gated)         e.g. CoDeX's block gradient
        evaluate                  eps, x0 and, if a guide needs them, value and gradient, in one forward (and backward) pass
        select on value (gated)   e.g. CoDe, SVDD, SMC
        guide the kernel (gated)  e.g. DPS, MPGD, Universal Guidance, TDS
        draw; noise back to t if k < K

Selection and draw use the same evaluation, so that selection adds none; a correction costs one more, which gives eps, x0, value
and gradient together. Calls are counted where they are made (`Info`).
The caller decides whether gradients flow into the network's weights, never the loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from tilting import rng, weights
from tilting.guidance.clusters import cluster
from tilting.guidance.corrector import Corrected
from tilting.guidance.kernel import Kernel
from tilting.guidance.value_and_grad import GradientContext, ValueAndGrad
from tilting.lazy import torch
from tilting.method import Every as Every
from tilting.method import Method as Method
from tilting.method import check as check
from tilting.select import SelectionInput
from tilting.state import Info as Info
from tilting.state import Problem as Problem
from tilting.state import ProcessGroup as ProcessGroup
from tilting.state import State as State
from tilting.state import Tally, evaluate, evaluate_noisy, evaluate_value, flat, in_chunks, rms_of, to_float64, value_of
from tilting.state import start as start
from tilting.state import start_from as start_from
from tilting.types import Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor


def gradient_context(
    problem: Problem, t: Time, step: int, n: int, suffix: str, x: Tensor, rows: Tensor, place: Tensor
) -> GradientContext:
    """The input of guides and corrections, for some rows of a step with n particles per image."""

    def noise(purpose: str, count: int) -> Tensor:
        keys = [(problem.who[p // n], p % n) for p in place.tolist()]
        shape = (count, *problem.shape)
        made = [torch.randn(shape, generator=rng.generator(w, j, step, purpose + suffix), device="cpu") for w, j in keys]
        return rng.beside(torch.stack(made), x)

    return GradientContext(x, t, rows, problem.denoise, value_of(problem), problem.cfg, noise, problem.chunk)


def _correct(problem: Problem, method: Method, x: Tensor, t: Time, step: int) -> Tensor:
    """x moved by the correction, along the gradient of each particle or of its cluster."""
    correct = method.correct
    assert correct is not None
    asked, label = x, None
    if method.correct_on in ("medoid", "mean"):
        asked, label = cluster(x, method.groups(x.shape[1]), "mean" if method.correct_on == "mean" else "medoid")
    size = max(1, problem.chunk // correct.estimator.samples)

    def move(a: Tensor, r: Tensor, place: Tensor) -> tuple[Tensor]:
        return (correct(gradient_context(problem, t, step, asked.shape[1], "", a, r, place))[0].detach(),)

    (moved,) = in_chunks(move, size, *flat(asked), over=problem.over)
    moved = moved.reshape(asked.shape)
    if label is None:
        return moved
    return x + torch.stack([step_[i] for step_, i in zip(moved - asked, label, strict=True)])


def _look(problem: Problem, method: Method, state: State, t: Time, with_grad: bool, suffix: str) -> State:
    """Fill the cache at (x, t): the prediction, and with ``with_grad`` value and gradient too."""
    if state.prediction is not None and (state.gradient is not None or not with_grad):
        return state
    x = state.x
    if not with_grad:
        return replace(state, prediction=evaluate(problem, x, t))

    def look(a: Tensor, r: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        found = method.estimator(gradient_context(problem, t, state.step, x.shape[1], suffix, a, r, place))
        return (found.value, found.gradient.detach(), *found.prediction)

    value, gradient, *parts = in_chunks(look, max(1, problem.chunk // method.estimator.samples), *flat(x), over=problem.over)
    prediction = Prediction(*(p.reshape(x.shape) for p in parts))
    value = to_float64(value.reshape(x.shape[:2]))
    return replace(state, prediction=prediction, value=value, gradient=gradient.reshape(x.shape))


class Step(NamedTuple):
    """A step's kernel for all particles: means of the reference and of the proposal, std, and the increment of log-weights."""

    base: Tensor
    mean: Tensor
    std: float
    log_weight: Tensor | float


def _kernel(problem: Problem, method: Method, state: State, t: Time, s: Time, guided: bool, suffix: str) -> Step:
    """The kernel as guides leave it, means (b, n, ...) each."""
    assert state.prediction is not None
    plain = Kernel(state.prediction, t, s, problem.eta, law=problem.law)
    base = plain.mean
    if not guided:
        return Step(base, base, plain.std, 0.0)
    shape, n, columns = state.x.shape, state.x.shape[1], list(flat(state.x))
    columns += [p.flatten(0, 1) for p in (*state.prediction, base)]
    if state.gradient is not None and state.value is not None:
        gradient = state.gradient
        scale = None if method.select is None else method.select.twist_scale(state.memory, state.step)
        if scale is not None:
            gradient = gradient * rng.beside(scale, gradient).reshape(*shape[:2], *[1] * len(shape[2:]))
        columns += [gradient.flatten(0, 1), rng.beside(state.value.flatten(), gradient)]

    def guide(a: Tensor, r: Tensor, place: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        (eps, x0, correction, own), seen = rest[:4], rest[4:]
        prediction = Prediction(eps, x0, correction)
        kernel = Kernel(prediction, t, s, problem.eta, law=problem.law)
        found = ValueAndGrad(seen[1], seen[0], prediction) if seen else None
        context = gradient_context(problem, t, state.step, n, suffix, a, r, place)
        for part in method.guides:
            kernel = part(kernel, found, context)
        gained = kernel.log_weight if isinstance(kernel.log_weight, torch.Tensor) else torch.zeros(len(a), device=a.device)
        return kernel.mean.detach(), own if kernel.base is None else kernel.base.detach(), gained

    samples = max((g.estimator.samples for g in method.guides if g.estimator is not None), default=1)
    mean, base, gained = in_chunks(guide, max(1, problem.chunk // samples), *columns, over=problem.over)
    spread = math.prod(part.spread(t) for part in method.guides if isinstance(part, Corrected))
    weight = to_float64(gained).reshape(shape[:2]) if method.importance_weighted else 0.0  # which waits for the device
    return Step(base.reshape(shape), mean.reshape(shape), spread * plain.std, weight)


Selected = tuple["Tensor | None", "Tensor | None"]
"""(parents, log-weights that they were drawn by)."""


def _select(problem: Problem, method: Method, state: State, i: int, steps: int) -> tuple[State, Tensor, Selected]:
    """(selected state, values seen, what was selected)."""
    assert state.prediction is not None and method.select is not None
    value = state.value
    if not method.select.needs_reward:
        value = torch.zeros_like(state.log_w)
    elif problem.noisy is not None:
        value = evaluate_noisy(problem, state.x, problem.grid[i])
    elif value is None:
        value = evaluate_value(problem, state.prediction.x0)
    uniforms = rng.uniform(problem.who, method.particles_at(i, steps), i).to(value.device)
    seen = SelectionInput(value, state.log_w, state.memory, uniforms, i / steps, i)
    parents, log_w, memory = method.select(seen)
    state = replace(state, memory=memory, value=value)
    if parents is not None:
        state = state.gather(parents)
    return replace(state, log_w=log_w), value, (parents, method.select.drawn_by(seen, memory))


def sample(problem: Problem, method: Method, state: State | None = None) -> Iterator[tuple[State, Info]]:
    """Draw the chain. Yields after every draw; the last State holds x_0.

    Args:
        problem: what is sampled.
        method: how.
        state: where to go on from; default `start`.
    """
    state = start(problem, method) if state is None else state
    if method.engine is not None:
        yield from method.engine(problem, method, state)
        return
    tally = Tally()
    problem, steps = tally.counting(problem), len(problem.grid) - 1
    if method.begin is not None and state.step == 0:
        first = problem.grid[0]
        begun: State = method.begin(
            problem, method.select, state, lambda one, k: _look(problem, method, one, first, True, f"/begin{k}")
        )
        state = begun
    winner = method.correct is not None and method.correct_on == "winner"
    for i in range(state.step, steps):
        t, s = problem.grid[i], problem.grid[i + 1]
        rounds = method.repeat if method.repeat_when(i, steps) else 1
        guided = bool(method.guides) and method.guide_when(i, steps)
        x0, value, std, moved, pushed = None, None, 0.0, None, None
        selected: Selected = (None, None)
        if method.correct and not winner and method.correct_when(i, steps):
            x = _correct(problem, method, state.x, t, i)
            moved, state = rms_of(x - state.x), state.moved(x)
        for k in range(rounds):
            suffix = f"/{k}" if k else ""
            state = _look(problem, method, state, t, guided and method.needs_value_and_grad, suffix)
            if k == 0:
                assert state.prediction is not None
                x0, value = state.prediction.x0, state.value
                if method.select is not None and method.select_when(i, steps):
                    state, value, selected = _select(problem, method, state, i, steps)
                    if winner and method.correct_when(i, steps):
                        x, state = state.x, _move_winner(problem, method, state, t, i)
                        pushed = rms_of(state.x - x)
            base, mean, std, gained = _kernel(problem, method, state, t, s, guided, suffix)
            if guided and k == 0:
                pushed = rms_of(mean - base)
            x, log_w = mean, state.log_w
            if std > 0:
                noise = rng.normal(problem.who, mean.shape[1], problem.shape, i + 1, "noise" + suffix)
                x = mean + std * rng.beside(noise, mean)
                if guided and method.importance_weighted:
                    log_w = log_w + _log_ratio(x, base, mean, std) + gained
            state = replace(state.moved(x), log_w=log_w)
            if k < rounds - 1:
                a = t.alpha / s.alpha
                noise = rng.normal(problem.who, x.shape[1], problem.shape, i + 1, f"renoise/{k}")
                state = state.moved(a * x + math.sqrt(max(t.sigma**2 - (a * s.sigma) ** 2, 0.0)) * rng.beside(noise, x))
        state = replace(state, step=i + 1)
        yield state, Info(i + 1, *tally.take(), value, selected[0], std, x0, selected[1], moved, pushed)


def _move_winner(problem: Problem, method: Method, state: State, t: Time, step: int) -> State:
    """The copies of one winner moved together: one gradient and one evaluation per image."""
    n = state.x.shape[1]
    x = _correct(problem, method, state.x[:, :1], t, step)
    prediction = Prediction(*(p.expand_as(state.x) for p in evaluate(problem, x, t)))
    return replace(state.moved(x.expand(-1, n, *x.shape[2:]).contiguous()), prediction=prediction)


def _log_ratio(x: Tensor, base: Tensor, mean: Tensor, std: float) -> Tensor:
    """log N(x; base, std²) - log N(x; mean, std²), (b, n) in float64: what a guided draw's weight owes."""
    x, base, mean = to_float64(torch.stack([x, base, mean]))  # one wait
    toward, away = (x - mean) / std, (x - base) / std
    return 0.5 * (toward.flatten(2).square().sum(2) - away.flatten(2).square().sum(2))


AS_HEAVY = 1e-3
"""Log-weights that differ by less are equal: the first of them is the heaviest."""


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
    if method.scores_finals or (method.final == "all" and problem.value is not None):
        value = evaluate_value(problem, state.x)
    if method.select is not None and value is not None:
        none = torch.empty(0, device="cpu")
        log_w, _ = method.select.weigh(SelectionInput(value, log_w, state.memory, none, 1.0, len(problem.grid) - 1))
    if method.final == "all":
        return Final(state.x, value, log_w, None)
    if method.final == "first":
        index = torch.zeros(b, dtype=torch.long, device="cpu")
    elif method.final == "sample":
        uniforms = rng.uniform(problem.who, 1, len(problem.grid), "final").to(log_w.device)
        index = weights.multinomial(weights.normalise(log_w), uniforms)[:, 0]
    elif method.final == "reward" and value is not None:
        index = value.argmax(1)
    else:  # what parted after a last resampling is as heavy but for the rounding of its values, of which none may depend
        index = (log_w >= log_w.max(1, keepdim=True).values - AS_HEAVY).int().argmax(1)
    return Final(state.gather(index[:, None]).x, value, log_w, index)
