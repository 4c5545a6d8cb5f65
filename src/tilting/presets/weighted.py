"""Presets of weighted particles beyond smc: tds, das, psi with a gradient in the proposal, fkc with the weights of a guided
score. Exact for the tilt of the same chain as N grows (psi: and its moves)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from tilting.declare import Doc, Window
from tilting.engines.chain import Pcnl
from tilting.errors import TiltingError
from tilting.guidance.corrector import Corrected
from tilting.guidance.kernel import Mean
from tilting.method import Every, Method
from tilting.presets.common import METHODS, Beta, EssThreshold, GradientPreset, Particles, Preset, Start
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

    def _method(self, name: str, select: Select, begin: Pcnl | None = None) -> Method:
        return Method(
            name,
            self.particles,
            self.start,
            begin=begin,
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
        float | None, Gt(0), Doc("γ; by default λ reaches 1 after 87 % of the run, as γ = .008 does at T = 100.")
    ] = None
    adaptive: Annotated[
        bool, Doc("instead of by γ, raise λ as far as the effective sample size stays at ess_threshold · N.")
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


@METHODS.register
@dataclass(frozen=True)
class Psi(Twisted):
    """Ψ-sampler: the particles of tds begun from the tilt's own starting noise, by a chain of pCNL moves at x_T.

        x_T^i ~ N(0, I);  u(x) = r(D(x0(x))) / beta
        repeat moves times:
            z = rho x_T + sqrt(1 - rho²) (N(0, I) + sqrt(move)/2 ∇u(x_T)),   rho = (1 - move/4) / (1 + move/4)
            x_T <- z with the probability of Metropolis and Hastings
        w^i = 1, and what the chain was drawn by, exp(u(x_T)), is owed no more;  go on as tds

    Yoon et al. 2025 (arXiv 2506.01320). Exact for the tilt as N and the moves grow. Here each particle has a chain and its last
    point goes on; the paper thins five chains of 25 moves after 25 of burn-in, and its code caps the gradient's norm, samples
    on rbf's interpolant and returns the particle of the highest reward. Where
    x0(x_T) does not depend on x_T, as a true model's at pure noise, the moves only draw x_T again: it is for few-step models.
    """

    moves: Annotated[int, Ge(1), Doc("proposals of each particle's chain, an evaluation with a gradient each.")] = 4
    move: Annotated[float, Gt(0), Lt(4), Doc("ε, the size of a proposal.")] = 0.5
    name = "psi"
    paper = "Yoon et al. 2025"
    published: ClassVar = {"particles": 10, "beta": 0.1, "moves": 50, "move": 0.5, "ess_threshold": 0.5, "steps": 25}

    def build(self, steps: int) -> Method:
        return self._method("psi", Smc(self.beta, self.ess_threshold), Pcnl(self.moves, self.beta, self.move))


@METHODS.register
@dataclass(frozen=True)
class Fkc(Preset):
    """Feynman-Kac correctors: weights with which CFG, or a power of the distribution, is sampled exactly; smc's tilt on top.

        x_T^i ~ N(0, I / power),  w^i = 1,  v_before^i = 0
        for t = T ... 1:
            if block draws were made since the last weighting:
                v^i = r(D(x0(x_t^i)));  w^i <- w^i exp((v^i - v_before^i) / beta);  v_before^i = v^i   (not without beta)
                if ESS(w) < ess_threshold · particles:  x_t <- resample(x_t, w);  w <- 1
            x_{t-1}^i ~ N(mean(x_t^i) - (power - 1) std² eps / σ_t, std²)
            w^i <- w^i exp(v/2 [power cfg (cfg - 1) |(eps_c - eps_u)/σ_t|² + power (power - 1) |eps/σ_t|²]), in window
        w^i <- w^i exp((r(D(x_0^i)) - v_before^i) / beta)
        return x_0^i of the largest w^i

    Skreta et al. 2025 (arXiv 2503.02819), Feynman-Kac correctors for geometric averages and annealing: the target is
    (q_u^(1 - cfg) q_c^cfg)^power exp(r / beta), reached as T and N grow; v is the noise that a step takes off. Without beta no
    reward is needed; at cfg 1 and power 1 it is smc. Their code resamples at every step and cuts the log-weights' increments to
    ± 1, which is a bias: images have many dimensions, so weights of many particles soon rest on one.
    """

    particles: Particles = 4
    beta: Annotated[float | None, Gt(0), Doc("temperature of the tilt, in the reward's units; null uses no reward.")] = 0.05
    power: Annotated[float, Gt(0), Doc("a, power of the distribution; above 1 it is sharper.")] = 1.0
    block: Annotated[int, Ge(1), Doc("draws between weightings.")] = 1
    window: Annotated[Window, Doc("(high, low) bounds of t/T inside which steps are corrected.")] = (1.0, 0.0)
    ess_threshold: EssThreshold = 0.5
    final: Annotated[Literal["weight", "sample"], Doc("keep the heaviest particle, or draw one by weight.")] = "weight"
    name = "fkc"
    paper = "Skreta et al. 2025"
    selects = True
    published: ClassVar = {"particles": 8, "block": 1, "ess_threshold": 1.0}

    def build(self, steps: int) -> Method:
        return Method(
            "fkc",
            self.particles,
            spread=self.power**-0.5,
            select=Smc(float("inf") if self.beta is None else self.beta, self.ess_threshold),
            select_when=Every(self.block),
            guides=(Corrected(self.power),),
            guide_when=Every(1, self.window, at_start=True),
            final=self.final,
        )
