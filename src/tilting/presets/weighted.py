"""Presets of weighted particles with a gradient in the proposal: tds, das. Exact for the tilt of the same chain as N grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tilting.presets.common import estimator

if TYPE_CHECKING:
    from tilting.method import Method


def _twisted(name: str, particles: int, beta: float, select: Any, probes: int | None, sigma: float, final: Any) -> Method:
    """Proposal N(mean + std² ∇ log twist, std²), weighed and resampled before every draw, x_T included."""
    from tilting.guidance.kernel import Mean
    from tilting.method import Every, Method

    return Method(
        name, particles, select=select, select_when=Every(1, at_start=True), final=final,
        guides=(Mean(1 / beta, "plain", "variance"),), slope=estimator(probes, sigma),
    )  # fmt: skip


@dataclass(frozen=True)
class Tds:
    """Twisted diffusion sampler: proposals pushed by the gradient of the twist exp(r(x0)/β), and weights that make them exact.

    Wu et al. 2023. The score-exact shift is (v/a)∇ instead of std²∇; either is right once weighted.

    Attributes:
        particles: N.
        beta: temperature of the tilt, in the reward's units.
        share: resample below this share of N effective particles.
        final: keep the heaviest particle, or draw one by weight.
        probes, sigma: zero-order gradients for black-box rewards.
    """

    particles: int = 4
    beta: float = 0.05
    share: float = 0.5
    final: Literal["weight", "sample"] = "weight"
    probes: int | None = None
    sigma: float = 0.1
    name = "tds"
    paper = "Wu et al. 2023"
    cost = "N·T"
    density = True
    published: ClassVar[dict[str, Any]] = {"particles": 8, "share": 0.5, "steps": 100}
    selects = True

    @property
    def climbs(self) -> bool:
        return self.probes is None

    def build(self, steps: int) -> Method:
        from tilting.select import Smc

        return _twisted("tds", self.particles, self.beta, Smc(self.beta, self.share), self.probes, self.sigma, self.final)


@dataclass(frozen=True)
class Das:
    """Diffusion alignment as sampling: TDS with twist and push tempered by λ_i = min((1 + γ)^i - 1, 1), SSP resampling,
    heaviest particle.

    Kim et al. 2025 (arXiv 2501.05803). Published: T = 100, CFG 5, γ = .008, β (their α) = .005 (aesthetic) / 1e-4 (PickScore).

    Attributes:
        particles: N.
        beta: temperature of the tilt, in the reward's units.
        temper: γ; default reaches λ = 1 when 87 % of the run is done, as γ = .008 does at T = 100.
        adaptive: raise λ as far as keeps the effective sample size at share · N, instead of by γ.
        share: resample below this share of N effective particles.
        final: keep the heaviest particle, or draw one by weight.
        probes, sigma: zero-order gradients for black-box rewards.
    """

    particles: int = 4
    beta: float = 0.05
    temper: float | None = None
    adaptive: bool = False
    share: float = 0.5
    final: Literal["weight", "sample"] = "weight"
    probes: int | None = None
    sigma: float = 0.1
    name = "das"
    paper = "Kim et al. 2025"
    cost = "N·T"
    density = True
    published: ClassVar[dict[str, Any]] = {"particles": 16, "beta": 0.005, "temper": 0.008, "steps": 100, "cfg": 5}
    selects = True

    @property
    def climbs(self) -> bool:
        return self.probes is None

    def build(self, steps: int) -> Method:
        from tilting.select import Smc

        temper = None if self.adaptive else self.temper or 2 ** (1 / max(1.0, 0.87 * steps)) - 1
        select = Smc(self.beta, self.share, temper=temper, adaptive=self.adaptive, scheme="ssp")
        return _twisted("das", self.particles, self.beta, select, self.probes, self.sigma, self.final)
