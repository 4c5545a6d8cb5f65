"""CoDeX's correction: move x_t along the gradient of the reward of its estimate, scaled by the CFG correction.

    g = ∇_{x_t} r(D(x0(x_t)))                                         through decoder and denoiser (thesis Alg. 2)
    s = rms(eps_cond - eps_uncond) · w_cfg · γ / (rms(g) + 1e-8)      (thesis App. A.1, after FreeDoM, Yu et al. 2023)
    x_t <- x_t + s · g                                                (thesis Alg. 1, line 8), per sample

The published code holds the denoiser's output constant (``through="decoder"``), so that g = ∇_{x0} r / α_t, and caps s at 150.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tilting.guidance.value_and_grad import Estimator, GradientContext, Rule, ValueAndGrad, step_size

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RewardGradient:
    """A move of x_t along the reward's gradient.

    Attributes:
        strength: γ; under the rule "cfg" relative to the CFG correction, under "plain" the step size itself.
        estimator: how the gradient is found.
        rule: see `tilting.guidance.value_and_grad.step_size`.
        cap: the largest scale s (150 in the published code), or None.
    """

    strength: float = 0.2
    estimator: Estimator = field(default=Estimator())
    rule: Rule = "cfg"
    cap: float | None = None

    def __call__(self, context: GradientContext) -> tuple[Tensor, ValueAndGrad]:
        """The moved latents (m, ...), and the value and gradient that moved them."""
        found = self.estimator(context)
        scale = step_size(self.rule, self.strength, found.gradient, found.prediction.correction, context.cfg, self.cap)
        return context.x + scale * found.gradient, found
