"""What CTRL's theory says, computed: the plane's mixture, a logistic classifier, and the best a Gaussian step can do.

    p_γ(x) ∝ p(x) p(y | x)^γ                             p the law of the T-step chain q(x_s | x_t) = N(m(x_t), std² I)
    h_t(x) = E[p(y | x_0)^γ | x_t = x]                    the exact tilt's kernel is q(x_s | x_t) h_s(x_s) / h_t(x_t)
    V_t(x) = max_u E[V_s(m + std (u + z))] - |u|²/2       the best kernel that stays Gaussian: what fine-tuning can reach

V_0 = log h_0 = γ log p(y | x_0); the last step is the base model's own. Both recursions run backwards on a grid of the plane,
with Gauss-Hermite nodes for z; at the optimum u = E[z V_s(m + std (u + z))] (Stein), by Newton. V <= log h, and they meet as T
grows: log h - V at x_T is what Gaussian steps cost, in nats of path KL to the tilt. Lemma 2 (Zhao et al. 2024) is the
continuous limit, closed form for a mixture: one quadrature along the classifier's direction, nothing changes across it.

x_T keeps its prior, whatever the control: the law reached is p(x_T) p(x_0 | x_T) p(y | x_0)^γ / h_T(x_T), which is p_γ only if
h_T is constant: on a memoryless schedule (eta = 1 and ᾱ_T = 0), or from a Dirac start as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tilting import weights
from tilting.oracle.mixture import ZERO_SNR, Mixture, MixtureModel
from tilting.oracle.plane import BASE, tensors
from tilting.schedule import Schedule, transition
from tilting.types import Denoise, Prediction, Time, Transition

(AIM,) = tensors([1.2, -0.8])
OFFSET = 0.3
"""p(y = 1 | x) = sigmoid(⟨AIM, x⟩ + OFFSET)."""
EDGE = 5.5
"""The grid of the plane goes from -EDGE to EDGE."""
ROUNDS = 5
"""Number of Newton steps towards u."""

Terminal = Callable[[Tensor], Tensor]
"""x_0 (m, 2) -> (m,): γ log p(y | x_0), or any reward over β."""
Control = Callable[[Tensor, int], Tensor]
"""(x_t (m, 2), step) -> u (m, 2), what is added to the mean, in units of the step's std."""


def log_classifier(x: Tensor, y: Tensor | float) -> Tensor:
    """log p(y | x), (m,), of x (m, 2) and y 0 or 1."""
    return torch.nn.functional.logsigmoid((2 * y - 1) * (x @ AIM + OFFSET))


class Drawn(NamedTuple):
    """Draws of a chain: x_T (m, 2), x_0 (m, 2), and the path KL (m,) of the control that steered it."""

    start: Tensor
    end: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Chain:
    """A sampler of the mixture.

    Attributes:
        steps: T.
        eta: of the sampler.
        schedule: of the noise; memoryless if eta is 1 and ᾱ_T = 0.
        mixture: what is drawn.
    """

    steps: int
    eta: float = 1.0
    schedule: Schedule = ZERO_SNR
    mixture: Mixture = BASE

    @property
    def grid(self) -> list[Time]:
        return self.schedule.grid(self.steps)

    @property
    def denoise(self) -> Denoise:
        return MixtureModel(self.mixture, self.schedule).denoiser()

    def kernel(self, x: Tensor, i: int, denoise: Denoise | None = None) -> Transition:
        """q(x_s | x_t) of step i, counted from 0 at x_T."""
        t, s = self.grid[i], self.grid[i + 1]
        return transition((denoise or self.denoise)(x, t, torch.arange(len(x))), t, s, self.eta)

    def draw(self, count: int, seed: int, control: Control | None = None, denoise: Denoise | None = None) -> Drawn:
        """``count`` draws, steered by a control or by another denoiser (whose KL is not counted)."""
        generator = torch.Generator().manual_seed(seed)

        def noise() -> Tensor:
            return torch.randn(count, 2, generator=generator, dtype=torch.float64)

        x = begun = noise()
        kl = torch.zeros(count, dtype=torch.float64)
        for i in range(self.steps):
            mean, std, _ = self.kernel(x, i, denoise)
            if control is not None and std > 0:
                u = control(x, i)
                mean, kl = mean + std * u, kl + 0.5 * u.square().sum(1)
            x = mean + std * noise()
        return Drawn(begun, x, kl)


def tilt(chain: Chain, log_weight: Callable[[Drawn], Tensor], count: int, seed: int, pool: int = 20) -> Tensor:
    """Draws (count, 2) of the chain's tilt: resampled from ``pool`` times as many of its own by exp(log_weight)."""
    drawn = chain.draw(pool * count, seed)
    half = torch.full((1,), 0.5, dtype=torch.float64)
    return drawn.end[weights.systematic(weights.normalise(log_weight(drawn))[None], half, count)[0]]


class Surface:
    """A function of the plane known on the grid; cubic between its points, its edge's beyond."""

    def __init__(self, axis: Any, values: Tensor):
        from scipy.interpolate import RectBivariateSpline

        self.spline = RectBivariateSpline(axis, axis, values.reshape(len(axis), len(axis)).numpy())

    def __call__(self, x: Tensor) -> Tensor:
        """(...) at x (..., 2)."""
        return torch.from_numpy(self.spline.ev(x[..., 0].numpy(), x[..., 1].numpy()))


@dataclass(frozen=True)
class Optimum:
    """What the recursions found.

    Attributes:
        log_h: log h at x_T: log E[p(y | x_0)^γ | x_T].
        value: V at x_T.
        controls: u of each step with a density, by component; None for the others.
    """

    log_h: Surface
    value: Surface
    controls: Sequence[tuple[Surface, Surface] | None]

    def __call__(self, x: Tensor, i: int) -> Tensor:
        """u (m, 2): the best Gaussian step's."""
        pair = self.controls[i]
        return torch.zeros_like(x) if pair is None else torch.stack([pair[0](x), pair[1](x)], -1)


def _nodes(count: int) -> tuple[Tensor, Tensor]:
    """Nodes (count², 2) and weights of E[f(z)], z standard normal in the plane."""
    import numpy as np

    z, w = np.polynomial.hermite_e.hermegauss(count)
    pairs = np.stack(np.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 2)
    return torch.from_numpy(pairs), torch.from_numpy(np.outer(w, w).reshape(-1) / w.sum() ** 2)


def _newton(u: Tensor, z: Tensor, values: Tensor) -> Tensor:
    """A step towards the u (m, 2) that maximises E[V(u + z)] - |u|²/2, V at the nodes by their weights being ``values`` (m, n).

    Slope E[z V] - u, curvature E[(z zᵀ - 1) V] - 1 (Stein, twice); where that is not concave it is taken for so. The plain
    fixed point u = E[z V] diverges where std² |∇²V| > 1: long steps towards a narrow tilt.
    """
    slope = values @ z - u
    bend = torch.einsum("mn,ni,nj->mij", values, z, z) - (values.sum(1)[:, None, None] + 1) * torch.eye(2, dtype=u.dtype)
    size, ways = torch.linalg.eigh(bend)
    step = ways @ ((ways.mT @ slope[..., None]) / size.abs().clamp(min=0.5)[..., None])
    return step[..., 0].clamp(-1, 1)


def solve(chain: Chain, terminal: Terminal, cells: int = 45) -> Optimum:
    """h, V and u of a chain, backwards from x_0.

    Args:
        chain: whose kernels.
        terminal: log h_0 = V_0.
        cells: points of the grid to a side.
    """
    import numpy as np

    axis = np.linspace(-EDGE, EDGE, cells)
    points = torch.from_numpy(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
    value: Terminal = terminal
    log_h: Terminal = terminal
    controls: list[tuple[Surface, Surface] | None] = []
    for i in reversed(range(chain.steps)):
        mean, std, _ = chain.kernel(points, i)
        if std == 0:
            h, v = log_h(mean), value(mean)
            controls.append(None)
        else:
            same = chain.eta == 1 and chain.grid[i].alpha == 0  # pure noise says nothing of x_0: one point is all of them
            at = mean[:1] if same else mean
            z, w = _nodes(25 if same else 11 if std > 0.35 else 7 if std > 0.15 else 5)
            h = (w.log() + log_h(at[:, None] + std * z)).logsumexp(1).expand(len(points))
            u = torch.zeros_like(at)
            for _ in range(ROUNDS):
                u = u + _newton(u, z, w * value(at[:, None] + std * (u[:, None] + z)))
            v = (w * value(at[:, None] + std * (u[:, None] + z))).sum(1) - 0.5 * u.square().sum(1)
            u, v = u.expand_as(points), v.expand(len(points))
            controls.append((Surface(axis, u[:, 0]), Surface(axis, u[:, 1])))
        log_h, value = Surface(axis, h), Surface(axis, v)
    assert isinstance(log_h, Surface)
    assert isinstance(value, Surface)
    return Optimum(log_h, value, controls[::-1])


def tilted_posterior(mixture: Mixture, x: Tensor, t: Time, gamma: float, y: float, nodes: int = 32) -> tuple[Tensor, Tensor]:
    """(log h_t(x), E[x_0 | x_t = x] under p_γ): Lemma 2 in closed form, (m,) and (m, 2).

    p(x_0 | x_t) is a mixture of N(m_k, v_k I), v_k = s_k² σ² / (α² s_k² + σ²). The classifier looks along AIM only, so each
    component needs one quadrature: x_0 = m_k + sqrt(v_k) ζ AIM/|AIM| + something that p(y | x_0) does not see.
    """
    import numpy as np

    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    z, w = torch.from_numpy(z), torch.from_numpy(w / w.sum())
    var = t.alpha**2 * mixture.stds**2 + t.sigma**2
    spread = mixture.stds * t.sigma / var.sqrt()
    means = mixture.means + (t.alpha * mixture.stds**2 / var)[:, None] * (x[:, None] - t.alpha * mixture.means)
    rho = mixture.log_responsibilities(x, t.alpha, t.sigma).log_softmax(1)
    way = AIM / AIM.norm()
    at = means[:, :, None] + (spread[:, None] * z)[..., None] * way  # (m, k, nodes, 2)
    logits = rho[..., None] + w.log() + gamma * log_classifier(at, y)
    share = logits.flatten(1).softmax(1).reshape(logits.shape)
    return logits.flatten(1).logsumexp(1), (share[..., None] * at).sum((1, 2))


def lemma(chain: Chain, gamma: float, y: float) -> Denoise:
    """The denoiser of p_γ's own diffusion: g* of Lemma 2, in the one transition (for γ = 1 exact classifier guidance)."""

    def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        x0 = tilted_posterior(chain.mixture, x, t, gamma, y)[1]
        eps = (x - t.alpha * x0) / t.sigma
        return Prediction(eps, x0, torch.zeros_like(x))

    return denoise


def shift(chain: Chain, denoise: Denoise) -> Control:
    """A denoiser's control: the distance of its means from the chain's own, in units of std."""

    def control(x: Tensor, i: int) -> Tensor:
        mean, std, _ = chain.kernel(x, i, denoise)
        return (mean - chain.kernel(x, i).mean) / std if std > 0 else torch.zeros_like(x)

    return control


def drift_error(chain: Chain, control: Control, truth: Control, count: int, seed: int) -> float:
    """sqrt(Σ_t E|u - u*|² / Σ_t E|u*|²) over the states that the true control reaches: relative, weighted as the path KL is."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    apart = size = 0.0
    for i in range(chain.steps):
        mean, std, _ = chain.kernel(x, i)
        if std > 0:
            u = truth(x, i)
            apart, size = apart + (control(x, i) - u).square().sum().item(), size + u.square().sum().item()
            mean = mean + std * u
        x = mean + std * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return math.sqrt(apart / size)
