"""Guides: changes of one step's kernel N(mean, std²) by published methods, given the gradient of the reward at x_t or at x0.

    Score    eps' = eps - σ_t w g,                g at x_t    classifier and reconstruction guidance, Universal Guidance forward
    Mean     mean' = mean + s g,                  g at x_t    DPS, FreeDoM, LGD, TFG, TDS
    Clean    m times x0 <- x0 + s ∇_{x0} r                    MPGD, TFG's μ, Universal Guidance backward

Score is exact for a Gaussian base and a linear reward, w = 1/β (Dhariwal & Nichol 2021; Ho et al. 2022). s of Mean is ζ (DPS),
sized by the CFG norm or plain (FreeDoM, LGD), ρ α_s / α_t (TFG), or std² / β (TDS: the proposal that its weights make exact).
Clean keeps eps (MPGD, TFG), or x_t (MPGD's code, Universal Guidance): eps' = (x_t - α_t x0') / σ_t, or eps -= α_t / σ_t · Δ.

Each is a frozen value, (kernel, value and gradient at x_t, context) -> kernel. None depends on the drawn point, so that every
guided kernel is Gaussian with a known density. Several guides compose in order; all use the same gradient, that of the unguided
prediction. The importance weight of a draw is the unguided density over the guided one, unless a guide says otherwise
(`tilting.guidance.corrector`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from tilting.guidance.value_and_grad import Estimator, GradientContext, Rule, ValueAndGrad, step_size
from tilting.schedule import Law, step_std, transition
from tilting.types import Prediction, TiltingError, Time, Watch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """The Gaussian kernel of a step from t to s.

    Attributes:
        prediction: guided eps and x0, (m, ...) each.
        shift: (m, ...) added to the mean, or 0.
        t, s: current and next time.
        eta: η of the step.
        law: distribution of its noise.
        spread: factor of its std.
        base: (m, ...) mean of the reference kernel of importance weights; None for the unguided one.
        log_weight: (m,) increment of log-weights besides the ratio of the two densities, or 0.
    """

    prediction: Prediction
    t: Time
    s: Time
    eta: float
    shift: Tensor | float = 0.0
    law: Law = "posterior"
    spread: float = 1.0
    base: Tensor | None = None
    log_weight: Tensor | float = 0.0

    @property
    def std(self) -> float:
        """Standard deviation of the step."""
        return self.spread * step_std(self.t, self.s, self.eta, self.law)

    @property
    def mean(self) -> Tensor:
        """The mean of x_s, (m, ...)."""
        return transition(self.prediction, self.t, self.s, self.eta, self.law).mean + self.shift


class Guide(Protocol):
    """A change of a kernel.

    Attributes:
        needs_value_and_grad: whether it needs the gradient at x_t, which is computed together with value and prediction.
        estimator: estimates further gradients of its own, or None.
        rule: how its strength sets the step size; see `tilting.guidance.value_and_grad.step_size`.
    """

    @property
    def needs_value_and_grad(self) -> bool: ...

    @property
    def estimator(self) -> Estimator | None: ...

    @property
    def rule(self) -> Rule: ...

    def __call__(self, kernel: Kernel, seen: ValueAndGrad | None, context: GradientContext) -> Kernel: ...


def _gradient(seen: ValueAndGrad | None) -> Tensor:
    if seen is None:
        raise TiltingError("this guide needs the gradient at x_t")
    return seen.gradient


@dataclass(frozen=True)
class Score:
    """eps' = eps - σ_t w g and x0' to match; at pure noise (alpha 0), where x0 does not depend on x_t, nothing happens."""

    strength: float = 1.0
    needs_value_and_grad = True
    estimator = None

    @property
    def rule(self) -> Rule:
        return "plain"

    def __call__(self, kernel: Kernel, seen: ValueAndGrad | None, context: GradientContext) -> Kernel:
        t, (eps, x0, correction) = kernel.t, kernel.prediction
        if t.alpha == 0:
            return kernel
        move = t.sigma * self.strength * _gradient(seen)
        return replace(kernel, prediction=Prediction(eps - move, x0 + t.sigma / t.alpha * move, correction))


@dataclass(frozen=True)
class Mean:
    """mean' = mean + s g.

    Attributes:
        strength: ζ, ρ or γ (for "variance" 1 / β).
        rule: how s follows from the strength; see `tilting.guidance.value_and_grad.step_size`.
        factor: "one"; "ratio", α_s / α_t (TFG: the move of x_t, carried to s); "variance", std² (TDS).
    """

    strength: float = 1.0
    rule: Rule = "plain"
    factor: Literal["one", "ratio", "variance"] = "one"
    needs_value_and_grad = True
    estimator = None

    def __call__(self, kernel: Kernel, seen: ValueAndGrad | None, context: GradientContext) -> Kernel:
        t, s, g = kernel.t, kernel.s, _gradient(seen)
        if self.factor == "ratio" and t.alpha == 0:
            return kernel
        factor = {"one": 1.0, "ratio": s.alpha / t.alpha if t.alpha > 0 else 0.0, "variance": kernel.std**2}[self.factor]
        scale = step_size(self.rule, self.strength, g, kernel.prediction.correction, context.cfg)
        return replace(kernel, shift=kernel.shift + factor * scale * g)


@dataclass(frozen=True)
class Clean:
    """m gradient steps on the estimate x0.

    Attributes:
        strength: c or μ, per step.
        steps: m.
        rule: "plain"; "unit" normalises each gradient (per sample); "cfg" scales by the CFG correction's norm.
        keep: what stays while x0 moves: "eps" (MPGD, TFG), or "x" (Universal Guidance backward, MPGD's published code).
        scale: "one"; "variance" multiplies by σ_t² (so that moves fade with the noise).
        estimator: how the gradient is found.
    """

    strength: float = 1.0
    steps: int = 1
    rule: Rule = "plain"
    keep: Literal["eps", "x"] = "eps"
    scale: Literal["one", "variance"] = "one"
    estimator: Estimator = field(default=Estimator())
    needs_value_and_grad = False

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise TiltingError(f"steps on the estimate must not be negative, not {self.steps}")

    def __call__(self, kernel: Kernel, seen: ValueAndGrad | None, context: GradientContext) -> Kernel:
        t, (eps, x0, correction) = kernel.t, kernel.prediction
        begun = x0 if seen is None else seen.prediction.x0  # the unguided estimate: Δ is found before eps is moved
        moved = begun
        for step in range(self.steps):
            g = self.estimator.clean(context, moved, step)
            size = step_size(self.rule, self.strength, g, correction, context.cfg)
            moved = moved + size * (t.sigma**2 if self.scale == "variance" else 1.0) * g
        delta = (moved - begun).detach()
        if self.keep == "x" and t.alpha > 0:
            eps = eps - t.alpha / t.sigma * delta
        return replace(kernel, prediction=Prediction(eps, x0 + delta, correction))


@dataclass(frozen=True)
class Watching:
    """A last guide that changes nothing and reports how the others moved the prediction."""

    watch: Watch
    needs_value_and_grad = False
    estimator = None

    @property
    def rule(self) -> Rule:
        return "plain"

    def __call__(self, kernel: Kernel, seen: ValueAndGrad | None, context: GradientContext) -> Kernel:
        if seen is not None:
            self.watch(kernel.prediction, seen.prediction, kernel.t, context.rows)
        return kernel
