"""Presets of weighted particles with a gradient in the proposal: tds, das. Exact for the tilt of the same chain as N grows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt

from tilting.declare import Doc
from tilting.errors import TiltingError
from tilting.guidance.kernel import Mean
from tilting.method import Every, Method
from tilting.presets.common import METHODS, Beta, EssThreshold, GradientPreset, Particles, Start
from tilting.select import Select, Smc


@dataclass(frozen=True)
class Twisted(GradientPreset):
    """Proposal N(mean + std² ∇ log twist, std²), weighed and resampled before every draw, x_T included."""

    particles: Particles = 4
    beta: Beta = 0.05
    ess_threshold: EssThreshold = field(default=0.5, kw_only=True)
    final: Annotated[Literal["weight", "sample"], Doc("keep the heaviest particle, or draw one by weight.")] = field(
        default="weight", kw_only=True
    )
    start: Start = field(default="independent", kw_only=True)
    selects = True

    def _method(self, name: str, select: Select) -> Method:
        return Method(
            name,
            self.particles,
            self.start,
            select=select,
            select_when=Every(1, at_start=True),
            final=self.final,
            guides=(Mean(1 / self.beta, "plain", "variance"),),
            estimator=self._estimator(),
        )


@METHODS.register
@dataclass(frozen=True)
class Tds(Twisted):
    """Twisted diffusion sampler: proposals moved by the gradient of the twist exp(r(x0)/β), and weights that make them exact.

        x_T^i ~ N(0, I),  w^i = 1,  v_before^i = 0
        for t = T ... 1:
            v^i, g^i = r(D(x0(x_t^i))) and its gradient at x_t^i
            w^i <- w^i exp((v^i - v_before^i) / beta);  v_before^i = v^i
            if ESS(w) < ess_threshold · particles:  x_t <- resample(x_t, w);  w <- 1
            x_{t-1}^i ~ q = N(mean(x_t^i) + std² g^i / beta, std²)
            w^i <- w^i N(x_{t-1}^i; mean(x_t^i), std²) / q(x_{t-1}^i)
        w^i <- w^i exp((r(D(x_0^i)) - v_before^i) / beta)
        return x_0^i of the largest w^i

    Wu et al. 2023. The score-exact shift is (v/a)∇ instead of std²∇; either is right once weighted.
    """

    name = "tds"
    paper = "Wu et al. 2023"
    published: ClassVar = {"particles": 8, "ess_threshold": 0.5, "steps": 100}

    def build(self, steps: int) -> Method:
        return self._method("tds", Smc(self.beta, self.ess_threshold))


@METHODS.register
@dataclass(frozen=True)
class Das(Twisted):
    """Diffusion alignment as sampling: TDS with twist and proposal tempered by λ_i = min((1 + γ)^i - 1, 1), SSP resampling,
    heaviest particle.

        x_T^i ~ N(0, I),  w^i = 1,  u_before^i = 0
        for t = T ... 1, after n = T - t draws:
            λ = min((1 + temper)^n - 1, 1), or with adaptive the largest that keeps ESS(w)
            v^i, g^i = r(D(x0(x_t^i))) and its gradient at x_t^i
            w^i <- w^i exp(u^i - u_before^i),  u^i = λ v^i / beta;  u_before^i = u^i
            if ESS(w) < ess_threshold · particles:  x_t <- ssp(x_t, w);  w <- 1
            x_{t-1}^i ~ q = N(mean(x_t^i) + std² λ' g^i / beta, std²),  λ' the λ of n + 1 draws (with adaptive, λ)
            w^i <- w^i N(x_{t-1}^i; mean(x_t^i), std²) / q(x_{t-1}^i)
        w^i <- w^i exp(r(D(x_0^i)) / beta - u_before^i)
        return x_0^i of the largest w^i

    Kim et al. 2025 (arXiv 2501.05803). Published: T = 100, CFG 5, γ = .008, β (their α) = .005 (aesthetic) / 1e-4 (PickScore).
    """

    temper: Annotated[
        float | None, Gt(0), Doc("γ; default reaches λ = 1 when 87 % of the run is done, as γ = .008 does at T = 100.")
    ] = None
    adaptive: Annotated[
        bool, Doc("raise λ as far as keeps the effective sample size at ess_threshold · N, instead of by γ.")
    ] = False
    name = "das"
    paper = "Kim et al. 2025"
    published: ClassVar = {"particles": 16, "beta": 0.005, "temper": 0.008, "steps": 100, "cfg": 5}
    published_for: ClassVar = {"pickscore": {"beta": 1e-4}}

    def build(self, steps: int) -> Method:
        if self.adaptive and self.temper is not None:
            raise TiltingError("das.adaptive raises λ by the effective sample size: leave das.temper unset")
        temper = 2 ** (1 / max(1.0, 0.87 * steps)) - 1 if self.temper is None else self.temper
        temper = None if self.adaptive else temper
        return self._method("das", Smc(self.beta, self.ess_threshold, temper=temper, adaptive=self.adaptive, scheme="ssp"))
