"""Noise schedules, sampling grids and the one transition that is DDIM, DDPM and flow.

    x_t = α_t x_0 + σ_t noise,   α_t = sqrt(ᾱ_t), σ_t = sqrt(1 - ᾱ_t)   (flow: α_t = 1 - t, σ_t = t)

    x_s = α_s x0 + sqrt(σ_s² - std²) eps + std · noise
    std = eta · σ_s sqrt(v) / σ_t,   v = σ_t² - a² σ_s²,   a = α_t / α_s

eta = 0 is DDIM (Song et al. 2021) and the Euler step of flow matching; eta = 1 is ancestral sampling with the posterior
variance β̃ (Ho et al. 2020, "fixed_small"). "fixed_large" β_t is not of this family.

Two other laws of a random step, of those who train flow models by policy gradients; eta is their noise level a:

    cps         std = σ_s sin(a π / 2), the same mean                    Flow-CPS, Wang and Yu 2025 (arXiv 2509.05952)
    euler       std = n_s a sqrt(t / (1 - t) (t - s)),   mean = α_s x0 + (σ_s - std² / (2 n_s t)) eps
                                                                         Flow-GRPO, Liu et al. 2025 (arXiv 2505.05470), Eq. 9

with n = α + σ and t, s = σ / n, the times of the flow that is the same process: x_t / n_t (flow models have n = 1). Under
"posterior" and "cps" the coefficients of x0 and of all noise are α_s and σ_s, those of the marginal; "euler" is Euler and
Maruyama's step of the reverse SDE, which is so to first order in t - s only, and leaves more noise than σ_s says. Where its
1 - t is 0, at pure noise, the next time stands for t, as in the authors' code. No law draws noise where s is clean; their
sampler does there, and their training leaves that step out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tilting.lazy import torch
from tilting.types import Prediction, TiltingError, Time, Transition

Kind = Literal["epsilon", "v_prediction", "flow", "sample"]
Law = Literal["posterior", "cps", "euler"]
"""Distribution of the noise of a step; see above."""


@dataclass(frozen=True)
class Schedule:
    """What a model was trained with, and how to place T steps on it.

    Attributes:
        kind: what the network's output means.
        alpha_bar: ᾱ of every training time, in float64 as plain numbers; empty for flow models.
        final: ᾱ of the last grid value (1 reaches clean data; SD's DDIM ends at ᾱ_0 = .99915).
        spacing: where T steps fall: "trailing", "leading", "linspace".
        offset: added to the times of leading spacing (1 in Stable Diffusion).
        shift: of flow models: t -> shift t / (1 + (shift - 1) t).
        last: of flow models with linspace spacing, the last time but 0, before the shift.
    """

    kind: Kind
    alpha_bar: tuple[float, ...] = ()
    final: float = 1.0
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    offset: int = 0
    shift: float = 1.0
    last: float = 0.0

    def grid(self, steps: int) -> list[Time]:
        """The steps + 1 points from x_T to x_0. Raises TiltingError if there is no such grid."""
        if steps < 1:
            raise TiltingError(f"steps must be at least 1, not {steps}")
        if self.kind == "flow" and not self.alpha_bar:
            gap = (1 - self.last) / max(1, steps - 1) if self.spacing == "linspace" else 1 / steps
            times = [*(1 - i * gap for i in range(steps)), 0.0]
            times = [self.shift * t / (1 + (self.shift - 1) * t) for t in times]
            return [Time(1000 * t, 1 - t, t) for t in times]
        n = len(self.alpha_bar)
        if steps > n:
            raise TiltingError(f"steps must be at most {n}, the length of the model's schedule, not {steps}")
        if self.spacing == "trailing":
            stride = (n - n / steps) - n  # as numpy.arange rounds it: diffusers' own times, halves included
            places = [round(n + i * stride) - 1 for i in range(steps)]
        elif self.spacing == "leading":
            places = [(steps - 1 - i) * (n // steps) + self.offset for i in range(steps)]
        else:
            places = [round(i * ((n - 1) / max(1, steps - 1))) for i in reversed(range(steps))]
        if places[0] >= n:
            raise TiltingError(f"leading spacing with offset {self.offset} has no grid of {steps} steps: use fewer")
        points = [Time(float(t), math.sqrt(self.alpha_bar[t]), math.sqrt(1 - self.alpha_bar[t])) for t in places]
        return [*points, Time(0.0, math.sqrt(self.final), math.sqrt(1 - self.final))]


def variance_preserving(steps: int) -> list[Time]:
    """The steps + 1 points of a flow where the variance-preserving process of Song et al. 2021 has as much signal to noise, its
    own times (β from .1 to 20) evenly spaced; x is the flow's.

    A flow model sampled there is Kim et al.'s (2025, arXiv 2503.19385) with its interpolant converted, x / sqrt(α² + σ²) being
    theirs: under the laws "posterior" and "cps" a step depends on signal to noise alone. Their first point has α = .0066; it is
    pure noise here.
    """
    spent = [0.5 * (1 - i / steps) ** 2 * 19.9 + (1 - i / steps) * 0.1 for i in range(1, steps + 1)]
    pairs = [(math.exp(-b / 2), math.sqrt(-math.expm1(-b))) for b in spent]
    return [Time(1000.0, 0.0, 1.0), *(Time(1000 * s / (a + s), a / (a + s), s / (a + s)) for a, s in pairs)]


def predict(kind: Kind, output: torch.Tensor, x: torch.Tensor, t: Time) -> tuple[torch.Tensor, torch.Tensor]:
    """(eps, x0) from a network's output; the inverse relations of x = α x0 + σ eps.

    Args:
        kind: what ``output`` is: eps; v = α eps - σ x0 (Salimans & Ho 2022); flow u = eps - x0; or x0 itself.
        output: the network's output, shape of x.
        x: the latent at time t.
        t: where x is; an epsilon model cannot say x0 where alpha is 0, nor a sample model eps where sigma is 0.
    """
    if kind == "epsilon":
        if t.alpha == 0:
            raise TiltingError("an epsilon model cannot start from pure noise (alpha 0): it cannot say x0 there")
        return output, (x - t.sigma * output) / t.alpha
    if kind == "v_prediction":
        return t.alpha * output + t.sigma * x, t.alpha * x - t.sigma * output
    if kind == "flow":
        return x + t.alpha * output, x - t.sigma * output
    return (x - t.alpha * output) / t.sigma, output


def output_of(kind: Kind, prediction: Prediction, t: Time) -> torch.Tensor:
    """The network's output that `predict` made this of, shape of x."""
    eps, x0 = prediction.eps, prediction.x0
    return {"epsilon": eps, "v_prediction": t.alpha * eps - t.sigma * x0, "flow": eps - x0, "sample": x0}[kind]


def correction(kind: Kind, difference: torch.Tensor, t: Time) -> torch.Tensor:
    """The difference of two outputs (cond - uncond at the same x) as a difference of eps."""
    if kind == "epsilon":
        return difference
    if kind == "sample":
        return -t.alpha / t.sigma * difference
    return t.alpha * difference


def transition(prediction: Prediction, t: Time, s: Time, eta: float, law: Law = "posterior") -> Transition:
    """q(x_s | x_t) for one step from t down to s; the formula of this module's first lines.

    Args:
        prediction: of x_t; latents of any shape.
        t, s: current and next time, t.sigma > 0.
        eta: 0 deterministic ... 1 ancestral.
        law: of the noise.
    """
    std = step_std(t, s, eta, law)
    return Transition(s.alpha * prediction.x0 + _direction(t, s, std, law) * prediction.eps, std, prediction.x0)


def step_std(t: Time, s: Time, eta: float, law: Law = "posterior") -> float:
    """The standard deviation of the step from t to s; 0 where s is clean."""
    if law == "cps":
        return s.sigma * math.sin(eta * math.pi / 2)
    if law == "euler":
        now, then = flow_time(t), flow_time(s)
        left = 1 - (now if t.alpha > 0 else then)
        return eta * (s.alpha + s.sigma) * math.sqrt(now / left * (now - then)) if then > 0 else 0.0
    a = t.alpha / s.alpha
    return eta * s.sigma * math.sqrt(max(t.sigma**2 - a**2 * s.sigma**2, 0.0)) / t.sigma


def flow_time(t: Time) -> float:
    """σ / (α + σ): where the flow is that this process is, scaled."""
    return t.sigma / (t.alpha + t.sigma)


def _direction(t: Time, s: Time, std: float, law: Law) -> float:
    """What eps is multiplied by in the mean of a step."""
    if law == "euler":
        return s.sigma - std**2 / (2 * (s.alpha + s.sigma) * flow_time(t))
    return math.sqrt(max(s.sigma**2 - std**2, 0.0))


def add_noise(x0: torch.Tensor, noise: torch.Tensor, t: Time) -> torch.Tensor:
    """x_t = α x0 + σ noise: the forward process in one jump."""
    return t.alpha * x0 + t.sigma * noise


def log_prob(x: torch.Tensor, step: Transition, reduction: Literal["sum", "mean"] = "sum") -> torch.Tensor:
    """log N(x; mean, std² I) over all dims but the first.

    Args:
        x: (m, ...) the drawn next states.
        step: their transition; its std must be positive.
        reduction: "sum" is the density; "mean" divides by the number of dimensions, as published DDPO code does.

    Raises:
        TiltingError: where std is 0 (eta = 0, or the last step), which has no density.
    """
    if step.std <= 0:
        raise TiltingError("this step is deterministic (eta 0, or the last one), so it has no density")
    terms = -0.5 * ((x - step.mean) / step.std) ** 2 - math.log(step.std) - 0.5 * math.log(2 * math.pi)
    flat = terms.flatten(1)
    return flat.sum(1) if reduction == "sum" else flat.mean(1)


def scaled_linear(n: int = 1000, start: float = 0.00085, end: float = 0.012, zero_snr: bool = False) -> tuple[float, ...]:
    """ᾱ of Stable Diffusion's schedule; ``zero_snr`` rescales it to ᾱ_T = 0 (Lin et al. 2024, Alg. 1)."""
    beta = torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2
    root = (1 - beta).cumprod(0).sqrt()
    if zero_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return tuple((root**2).tolist())
