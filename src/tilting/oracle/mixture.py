"""The analytic model: a Gaussian mixture whose denoiser, tilts and posteriors are closed form. The library's oracle.

p(x_0) = Σ_k π_k N(μ_k, s_k² I);   p(x_t) = Σ_k π_k N(α μ_k, (α² s_k² + σ²) I)
E[x_0 | x_t] = Σ_k ρ_k(x_t) (μ_k + α s_k² / (α² s_k² + σ²) · (x_t - α μ_k))
tilted by r(x) = ⟨a, x⟩ - c/2 |x|²:  p*(x) ∝ p(x) exp(r(x)/β) is a mixture again (completing the square)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tilting.schedule import Schedule, scaled_linear
from tilting.types import Denoise, Prediction, Time


@dataclass(frozen=True)
class Mixture:
    """A mixture of isotropic Gaussians over vectors of d numbers.

    Attributes:
        weights: (k,) positive, sum 1.
        means: (k, d).
        stds: (k,) standard deviations.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def log_responsibilities(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """(m, k) log of π_k N(x; α μ_k, (α² s_k² + σ²) I)."""
        var = alpha**2 * self.stds**2 + sigma**2
        square = (x[:, None] - alpha * self.means).square().sum(-1)
        return self.weights.log() - 0.5 * square / var - 0.5 * x.shape[-1] * (2 * math.pi * var).log()

    def log_density(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """(m,) log p(x_t) of x (m, d)."""
        return self.log_responsibilities(x, alpha, sigma).logsumexp(1)

    def tweedie(self, x: Tensor, t: Time) -> Tensor:
        """E[x_0 | x_t = x], (m, d)."""
        var = t.alpha**2 * self.stds**2 + t.sigma**2
        rho = self.log_responsibilities(x, t.alpha, t.sigma).softmax(1)
        gain = t.alpha * self.stds**2 / var
        each = self.means + gain[:, None] * (x[:, None] - t.alpha * self.means)
        return (rho[..., None] * each).sum(1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, d) samples."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.stds[k, None] * noise

    def tilt(self, slope: Tensor, curvature: float = 0.0) -> tuple[Mixture, Tensor]:
        """p*(x) ∝ p(x) exp(⟨slope, x⟩ - curvature/2 |x|²), and log of its normalising constant E_p[exp(...)].

        Args:
            slope: (d,) already divided by β.
            curvature: already divided by β; 1 + curvature · s_k² must be positive.
        """
        var = self.stds**2
        new_var = var / (1 + curvature * var)
        new_mean = new_var[:, None] * (self.means / var[:, None] + slope)
        d = self.means.shape[1]
        log_z = (
            0.5 * (new_mean.square().sum(1) / new_var - self.means.square().sum(1) / var)
            + 0.5 * d * (new_var / var).log()
            + self.weights.log()
        )
        total = log_z.logsumexp(0)
        return Mixture((log_z - total).exp(), new_mean, new_var.sqrt()), total


ZERO_SNR = Schedule("v_prediction", scaled_linear(zero_snr=True))
"""pocket's own schedule."""


@dataclass(frozen=True)
class MixtureModel:
    """A mixture as a model: what samplers ask of any model, exactly."""

    mixture: Mixture
    schedule: Schedule = ZERO_SNR

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.mixture.means.shape[1],)

    def denoiser(self, reference: Mixture | None = None, cfg: float = 1.0) -> Denoise:
        """The exact denoiser; with ``reference`` as the unconditional model and a guidance scale if asked."""

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            eps = _eps(self.mixture, x, t)
            delta = torch.zeros_like(x)
            if reference is not None:
                unconditional = _eps(reference, x, t)
                delta = eps - unconditional
                eps = unconditional + cfg * delta
            x0 = (x - t.sigma * eps) / t.alpha if t.alpha > 0 else self.mixture.tweedie(x, t)
            return Prediction(eps, x0, delta)

        return denoise


def _eps(mixture: Mixture, x: Tensor, t: Time) -> Tensor:
    return (x - t.alpha * mixture.tweedie(x, t)) / t.sigma
