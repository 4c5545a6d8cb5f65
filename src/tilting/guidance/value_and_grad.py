"""The gradient of a reward of the estimate, in every published way of finding one.

    through the denoiser  g = ∇_{x_t} r(D(x0(x_t)))                                  Universal Guidance, FreeDoM, CoDeX, TDS
    through the decoder   g = ∇_{x_t} r(D((x_t - σ_t eps) / α_t)), eps held           MPGD's direction / α_t; CoDeX's code
    smoothed              r~(x0) = τ log mean_i exp(r(D(x0 + ρ σ_t z_i)) / τ)         LGD, Song et al. 2023; TFG, Ye et al.
    zero-order            g = 1/N' Σ_i [r~(x + σ z_i) - r~(x - σ z_i)] / (2 σ) · z_i  CoDeX, Eq. 13; for black-box rewards

Back-propagated gradients go in two parts, v = ∇_{x0} r and then Jᵀ (2^k v) / 2^k with J = ∂x0/∂x_t, k of each row such that
the largest of 2^k v is in [1/2, 1): the same bits in float32, and a network in float16, below whose smallest numbers a reward's
gradient often is, does not lose it.

A zero-order gradient of N' probes in d dimensions has cosine of about sqrt(N' / (d + N' + 1)) to the true one for any σ: a
smaller σ (here relative to the noise level σ_t) removes bias, only more probes remove noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from tilting.lazy import torch
from tilting.types import Denoise, Prediction, RewardError, TiltingError, Time, ValueFn

if TYPE_CHECKING:
    from torch import Tensor

Noise = Callable[[str, int], "Tensor"]
"""(purpose, count) -> (m, count, ...) standard normal, each row's draw keyed by its own image, particle and step."""


@dataclass(frozen=True)
class GradientContext:
    """Input of a gradient estimate: rows of latents at one time, and the functions of them.

    Attributes:
        x: (m, ...) latents at t.
        t: their time.
        rows: (m,) image of each row.
        denoise, value: see `tilting.types`.
        cfg: guidance scale, which some rules scale with.
        noise: keyed noise of these rows; only smoothing and zero-order probes ask for it.
        chunk: maximum number of rows in one call, when probes multiply them.
    """

    x: Tensor
    t: Time
    rows: Tensor
    denoise: Denoise
    value: ValueFn
    cfg: float = 1.0
    noise: Noise | None = None
    chunk: int = 1_000_000

    def draw(self, purpose: str, count: int) -> Tensor:
        """Keyed noise (m, count, ...) in the dtype of x."""
        if self.noise is None:
            raise TiltingError("this gradient draws noise, and none was given")
        return self.noise(purpose, count).to(self.x)


class ValueAndGrad(NamedTuple):
    """A reward and its gradient at x_t, from one forward and backward pass.

    Attributes:
        value: (m,) reward of the estimate.
        gradient: shape of x, with respect to x_t.
        prediction: what the denoiser said of x_t, detached.
    """

    value: Tensor
    gradient: Tensor
    prediction: Prediction


def value_and_grad(
    x: Tensor, t: Time, rows: Tensor, denoise: Denoise, value: ValueFn, through: Literal["denoiser", "decoder"] = "denoiser"
) -> ValueAndGrad:
    """One backward pass for all rows: value, gradient and prediction together.

    Args:
        x: (m, ...) latents at t.
        t: where they are.
        rows: (m,) image of each row.
        denoise, value: see `tilting.types`.
        through: how far the gradient flows back: "denoiser" to x_t, "decoder" to x0 with eps held constant.

    Raises:
        TiltingError: if the value does not depend differentiably on x.
        RewardError: if its gradient is not finite.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        if through == "denoiser":
            prediction = denoise(x, t, rows)
            x0 = prediction.x0
        else:
            with torch.no_grad():
                prediction = denoise(x, t, rows)
            x0 = _estimate(x, t, prediction)
        scores = value(x0, rows)
        gradient = vjp(reward_grad(scores, x0, rows), x0, x, rows)
    return ValueAndGrad(scores.detach(), gradient, Prediction(*(part.detach() for part in prediction)))


def _estimate(x: Tensor, t: Time, held: Prediction) -> Tensor:
    """x0 of x with eps held; at pure noise (alpha 0) x says nothing of x0."""
    return (x - t.sigma * held.eps) / t.alpha if t.alpha > 0 else held.x0 + 0 * x


def reward_grad(scores: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """∇_x of scores (m,), whose rows are x's; refused where there is none, or none that is finite."""
    reaches = scores.requires_grad and x.requires_grad
    gradient = torch.autograd.grad(scores.sum(), x, allow_unused=True)[0] if reaches else None
    if gradient is None:
        raise TiltingError(
            "no gradient of this reward reaches the image (black-box, or detached inside?): set probes for zero-order "
            "gradients, or use code or bon"
        )
    return _finite(gradient, rows)


def vjp(v: Tensor, x0: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """Jᵀ v, J = ∂x0/∂x of rows (m, ...), by way of 2^k v."""
    size = v.flatten(1).abs().amax(1).reshape(-1, *[1] * (v.dim() - 1))
    k = -torch.frexp(size.cpu() if size.is_mps else size).exponent.to(size.device).clamp(-100, 100)  # MPS has no frexp
    (gradient,) = torch.autograd.grad(x0, x, torch.ldexp(v, k))
    return _finite(torch.ldexp(gradient, -k), rows)


def _finite(gradient: Tensor, rows: Tensor) -> Tensor:
    bad = (~gradient.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        raise RewardError("the gradient of the reward is not finite", int(rows[bad[0, 0]]))
    return gradient


@dataclass(frozen=True)
class Estimator:
    """How a gradient is found.

    Attributes:
        through: "denoiser", or "decoder" with eps held constant.
        probes: N' antithetic pairs of a zero-order gradient; None back-propagates.
        sigma: size of a probe, relative to the noise level σ_t.
        samples: estimates around x0 that a smoothed reward averages; 1 with ``radius`` 0 is the reward itself.
        radius: of the smoothing, relative to σ_t.
        tau: temperature of the smoothing's log-mean-exp, in the reward's units.
    """

    through: Literal["denoiser", "decoder"] = "denoiser"
    probes: int | None = None
    sigma: float = 0.1
    samples: int = 1
    radius: float = 0.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.probes is not None and self.probes < 1:
            raise TiltingError(f"probes must be at least 1, not {self.probes}")
        if self.samples < 1:
            raise TiltingError(f"samples must be at least 1, not {self.samples}")
        if not (self.sigma > 0 and self.tau > 0 and self.radius >= 0):
            raise TiltingError("a probe's sigma and the smoothing's tau must be positive, its radius not negative")

    @property
    def black_box(self) -> bool:
        """Whether it works without the reward's own gradient."""
        return self.probes is not None

    def __call__(self, context: GradientContext) -> ValueAndGrad:
        """Value, gradient and prediction at a context. Raises TiltingError for a black-box reward without probes."""
        value, x, t, rows = self.smoothed(context), context.x, context.t, context.rows
        if self.probes is None:
            return value_and_grad(x, t, rows, context.denoise, value, self.through)
        with torch.no_grad():
            held = context.denoise(x, t, rows)

            def score(at: Tensor, of: Tensor, index: Tensor) -> Tensor:
                if self.through == "denoiser":
                    return value(context.denoise(at, t, of).x0, of, index)
                return value(_estimate(at, t, Prediction(*(p[index] for p in held))), of, index)

            gradient = self._probe(context, score)
            return ValueAndGrad(value(held.x0, rows), gradient, held)

    def clean(self, context: GradientContext, x0: Tensor, step: int = 0) -> Tensor:
        """∇_{x0} of the (smoothed) reward at estimates x0 (m, ...): no denoiser is asked. Noise is of this ``step`` alone."""
        here = replace(context, x=x0, noise=lambda purpose, count: context.draw(f"{purpose}/clean{step}", count))
        value = self.smoothed(here)
        if self.probes is None:
            with torch.enable_grad():
                x0 = x0.detach().requires_grad_(True)
                return reward_grad(value(x0, context.rows), x0, context.rows)
        with torch.no_grad():
            return self._probe(here, lambda at, of, index: value(at, of, index))

    def smoothed(self, context: GradientContext) -> Callable[..., Tensor]:
        """The reward of x0, averaged over noised copies: (x0, rows, index of each row in the context) -> (m,)."""
        if self.samples == 1 and self.radius == 0:
            return lambda x0, rows, index=None: context.value(x0, rows)
        noise = context.draw("smooth", self.samples) * (self.radius * context.t.sigma)

        def value(x0: Tensor, rows: Tensor, index: Tensor | None = None) -> Tensor:
            near = noise if index is None else noise[index]
            copies = (x0[:, None] + near).flatten(0, 1)
            whose = rows.repeat_interleave(self.samples)
            scores = _in_pieces(context.value, copies, whose, context.chunk).reshape(len(x0), self.samples)
            return self.tau * ((scores / self.tau).logsumexp(1) - math.log(self.samples))

        return value

    def _probe(self, context: GradientContext, score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """The antithetic zero-order gradient of ``score`` at the context's x, in chunks of rows."""
        n, size, x = self.probes or 1, self.sigma * max(context.t.sigma, 1e-3), context.x
        z = context.draw("probe", n)
        points = torch.stack([x[:, None] + size * z, x[:, None] - size * z], 2).flatten(0, 2)
        index = torch.arange(len(x), device="cpu").repeat_interleave(2 * n)
        rows = context.rows.cpu()[index]
        most = max(1, context.chunk // self.samples)  # a smoothed score is of so many copies
        pieces = zip(points.split(most), rows.split(most), index.split(most), strict=True)
        scores = torch.cat([score(*piece) for piece in pieces]).reshape(len(x), n, 2).to(x)
        weight = (scores[..., 0] - scores[..., 1]) / (2 * size)
        return (weight.reshape(len(x), n, *[1] * (x.dim() - 1)) * z).mean(1)


def _in_pieces(value: ValueFn, x0: Tensor, rows: Tensor, most: int) -> Tensor:
    """``value`` of at most so many rows at once. The graph of a piece does not outlive it: its gradient is taken at once, and
    its scores are that line through x0."""
    if len(x0) <= most:
        return value(x0, rows)

    def line(x0: Tensor, rows: Tensor) -> Tensor:
        here = x0.detach().requires_grad_(torch.is_grad_enabled() and x0.requires_grad)
        scores = value(here, rows)
        if not (here.requires_grad and scores.requires_grad):
            return scores
        (slope,) = torch.autograd.grad(scores.sum(), here, allow_unused=True)
        return scores.detach() if slope is None else scores.detach() + ((x0 - here.detach()) * slope).flatten(1).sum(1)

    return torch.cat([line(*piece) for piece in zip(x0.split(most), rows.split(most), strict=True)])


def rms(x: Tensor) -> Tensor:
    """Root mean square of each row, (m, 1, ..., 1): a sample's own norm, never the batch's."""
    return x.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (x.dim() - 1))


Rule = Literal["cfg", "unit", "plain"]


def step_size(
    rule: Rule, strength: float, gradient: Tensor, correction: Tensor, cfg: float, cap: float | None = None
) -> Tensor:
    """The scale s of a step s · g, per row.

    Args:
        rule: "cfg" is rms(correction) · cfg · strength / rms(g) (FreeDoM, Yu et al. 2023; CoDeX, App. A.1); "unit" is
            strength / rms(g); "plain" is the strength itself. As published, 1e-8 is added to rms(g): a reward whose gradients
            are of that order, such as one of a weight of 1e-6, is followed less.
        strength: γ, ζ or ρ.
        gradient, correction: (m, ...).
        cfg: the guidance scale.
        cap: the largest size of the scale (150 in CoDeX's published code), or None.
    """
    if rule == "plain":
        scale = torch.full_like(rms(gradient), strength)
    elif rule not in ("cfg", "unit"):
        raise TiltingError(f"a rule is cfg, unit or plain, not {rule!r}")
    else:
        wanted = rms(correction) * cfg * strength if rule == "cfg" else strength
        scale = wanted / (rms(gradient) + 1e-8)
    return scale if cap is None else scale.clamp(-cap, cap)
