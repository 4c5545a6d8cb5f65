"""CoDeX's gradient: move the latent itself up the reward of its own estimate, scaled by the CFG correction.

    g = ∇_{x_t} r(D(x0(x_t)))                      through decoder and denoiser (thesis Alg. 2)
    s = rms(eps_cond - eps_uncond) · w_cfg · γ / (rms(g) + 1e-8)      (thesis App. A.1, after FreeDoM, Yu et al. 2023)
    x_t <- x_t + s · g                             (thesis Alg. 1, line 8), per sample

The published code holds the denoiser's output constant (``through="decoder"``), so that g = ∇_{x0} r / α_t, and caps s at 150.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tilting.types import Denoise, Prediction, TiltingError, Time, Value


class Slope(NamedTuple):
    """A reward and its gradient at x_t, from one evaluation.

    Attributes:
        value: (m,) reward of the estimate.
        gradient: shape of x, with respect to x_t.
        prediction: what the denoiser said of x_t, detached.
    """

    value: Tensor
    gradient: Tensor
    prediction: Prediction


def reward_slope(
    x: Tensor, t: Time, rows: Tensor, denoise: Denoise, value: Value, through: Literal["denoiser", "decoder"] = "denoiser"
) -> Slope:
    """One backward pass for all rows: value, gradient and prediction together.

    Args:
        x: (m, ...) latents at t.
        t: where they are.
        rows: (m,) image of each row.
        denoise, value: see `tilting.types`.
        through: how far the gradient flows back: "denoiser" to x_t, "decoder" to x0 with eps held constant.

    Raises:
        TiltingError: if the value does not depend differentiably on x.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        if through == "denoiser":
            prediction = denoise(x, t, rows)
            x0 = prediction.x0
        else:
            with torch.no_grad():
                prediction = denoise(x, t, rows)
            x0 = (x - t.sigma * prediction.eps) / t.alpha
        scores = value(x0, rows)
        gradient = torch.autograd.grad(scores.sum(), x, allow_unused=True)[0] if scores.requires_grad else None
        if gradient is None:
            raise TiltingError("this reward has no gradient (it is black-box): use a selection method such as code, or bon")
    return Slope(scores.detach(), gradient, Prediction(*(part.detach() for part in prediction)))


def rms(x: Tensor) -> Tensor:
    """Root mean square of each row, (m, 1, ..., 1)."""
    return x.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (x.dim() - 1))


@dataclass(frozen=True)
class RewardGradient:
    """A move of x_t along the reward's gradient.

    Attributes:
        strength: γ; with ``rescale`` relative to the CFG correction, without it the plain step size.
        through: "denoiser" (the thesis) or "decoder" (its published code).
        rescale: scale by the norm of the CFG correction; a plain x += strength · g if not.
        cap: the largest scale s (150 in the published code), or None.
    """

    strength: float = 0.2
    through: Literal["denoiser", "decoder"] = "denoiser"
    rescale: bool = True
    cap: float | None = None

    def __call__(self, x: Tensor, t: Time, rows: Tensor, denoise: Denoise, value: Value, cfg: float) -> tuple[Tensor, Slope]:
        """The moved latents and the slope they moved on; x (m, ...), rows (m,)."""
        slope = reward_slope(x, t, rows, denoise, value, self.through)
        if not self.rescale:
            return x + self.strength * slope.gradient, slope
        scale = rms(slope.prediction.correction) * cfg * self.strength / (rms(slope.gradient) + 1e-8)
        if self.cap is not None:
            scale = scale.clamp(max=self.cap)
        return x + scale * slope.gradient, slope
