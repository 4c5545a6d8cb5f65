"""Feynman-Kac correctors: weights that make a guided or annealed chain sample the distribution that its score belongs to.

Classifier-free guidance and a lower temperature mix scores as of q_u^(1-w) q_c^w or its power a, but do not sample from it.
Skreta et al. 2025 (arXiv 2503.02819) weight the paths of the reverse process, with g² dt the variance removed in dt:

    d log w = g²/2 [ a w (w - 1) |∇log q_c - ∇log q_u|² + a (a - 1) |(1 - w) ∇log q_u + w ∇log q_c|² ] dt

for any amount of noise in the steps, since Langevin noise leaves the marginals invariant. A step from t to s has
v = σ_t² - (α_t / α_s)² σ_s² for g² dt in the weight, and in the drift of a power, (a - 1) (g² + noise²)/2 dt ∇log q, its own
variance beside the posterior's for g² dt: to first order the same, and with these the weights of one Gaussian have a finite
mean on every grid that was tried, which they have not with v (α_s / α_t)². The law is right as T grows, not at every T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tilting.lazy import torch
from tilting.schedule import step_std

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.guidance.kernel import Kernel
    from tilting.guidance.value_and_grad import GradientContext, Rule, ValueAndGrad
    from tilting.types import Time


@dataclass(frozen=True)
class Corrected:
    """Adds the step's log-weight and, at a power other than 1, a drift.

    At pure noise (α = 0) an exact model's correction is the same for every particle, so there is no weight; a power narrows the
    noise there, since the step forgets x_T.

    Attributes:
        power: a.
    """

    power: float = 1.0
    needs_value_and_grad = False
    needs_reward = False
    estimator = None

    @property
    def rule(self) -> Rule:
        return "plain"

    def spread(self, t: Time) -> float:
        """What the std of a step from t is multiplied by."""
        return 1 / math.sqrt(self.power) if t.alpha == 0 else 1.0

    def __call__(self, kernel: Kernel, seen: ValueAndGrad | None, context: GradientContext) -> Kernel:
        t, s, (eps, _, correction) = kernel.t, kernel.s, kernel.prediction
        w, a = context.cfg, self.power
        if kernel.std == 0:
            return replace(kernel, base=kernel.mean)
        if t.alpha == 0:
            return replace(kernel, spread=kernel.spread * self.spread(t), base=kernel.mean)
        noise = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2

        wide = torch.promote_types(eps.dtype, torch.float32)

        def square(difference: Tensor) -> Tensor:
            return (difference / t.sigma).to(wide).flatten(1).square().sum(1)

        gained = 0.5 * noise * a * w * (w - 1) * square(correction)
        if a != 1:
            gained = gained + 0.5 * noise * a * (a - 1) * square(eps)
            drift = 0.5 * (step_std(t, s, 1.0) ** 2 + kernel.std**2)
            kernel = replace(kernel, shift=kernel.shift - (a - 1) * drift / t.sigma * eps)
        return replace(kernel, base=kernel.mean, log_weight=kernel.log_weight + gained)
