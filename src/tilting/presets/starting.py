"""Presets that look for a better start, or a better way on, through the whole chain: reno, doodl, zo, paths, lidar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from tilting.declare import Doc
from tilting.engines.lookahead import Lookahead
from tilting.engines.optimise import Optimise
from tilting.engines.search import NoiseSearch, PathSearch
from tilting.method import Method
from tilting.presets.common import METHODS, Beta, GradientPreset, Particles, Preset

Rate = Annotated[float, Gt(0), Doc("learning rate.")]


@dataclass(frozen=True)
class Optimised(GradientPreset):
    """Gradient ascent on the starting noise through the whole chain; the best picture is kept."""

    iterations: Annotated[int, Ge(2), Doc("I, evaluations of x_0; each but the last is followed by an update.")] = 10
    rate: Rate = 0.05
    density = False
    default_eta = 0.0


@METHODS.register
@dataclass(frozen=True)
class Reno(Optimised):
    """ReNO: gradient ascent on the starting noise through the whole chain, with a prior on its norm; the best picture is kept.

        x_T ~ N(0, I);  m = 0
        for k = 1 ... iterations:
            x_0 <- the deterministic chain from x_T
            if r(D(x_0)) is the highest so far:  keep x_0
            g = ∇_{x_T} [ r(D(x_0)) + prior · ((d - 1) log |x_T| - |x_T|² / 2) ]
            g <- g · min(1, clip / |g|)
            m <- .9 m + g;  x_T <- x_T + rate (g + .9 m)                        Nesterov
        return the kept x_0

    Eyring et al. 2024 (one-step models, lr 5, 50 iterations, prior .01, gradient clipped at .1).
    """

    rate: Rate = 5.0
    prior: Annotated[float, Ge(0), Doc("weight of the log-density of the noise's norm.")] = 0.01
    clip: Annotated[float, Gt(0), Doc("maximum norm of an image's gradient.")] = 0.1
    name = "reno"
    paper = "Eyring et al. 2024"
    published: ClassVar = {"iterations": 50, "rate": 5, "prior": 0.01, "clip": 0.1, "steps": 1}

    def build(self, steps: int) -> Method:
        probing = {"probes": self.probes, "sigma": self.sigma}
        return Method("reno", engine=Optimise(self.iterations, self.rate, "nesterov", self.prior, self.clip, **probing))


@METHODS.register
@dataclass(frozen=True)
class Doodl(Optimised):
    """DOODL: Adam on the starting noise through the whole chain, brought back to the sphere after each update.

        x_T ~ N(0, I)
        for k = 1 ... iterations:
            x_0 <- the deterministic chain from x_T
            if r(D(x_0)) is the highest so far:  keep x_0
            g = ∇_{x_T} r(D(x_0))
            x_T <- Adam(x_T, g, rate)
            x_T <- x_T · sqrt(d) / |x_T|
        return the kept x_0

    Wallace et al. 2023, as Clark et al. 2024, App. A.3, ran it (20 steps, checkpointed DDIM).
    """

    name = "doodl"
    paper = "Wallace et al. 2023"
    published: ClassVar = {"iterations": 20, "steps": 50}

    def build(self, steps: int) -> Method:
        probing = {"probes": self.probes, "sigma": self.sigma}
        return Method("doodl", engine=Optimise(self.iterations, self.rate, "adam", 0.0, None, True, **probing))


@METHODS.register
@dataclass(frozen=True)
class ZeroOrderSearch(Preset):
    """Zero-order search: hill climbing on the starting noise by its neighbours, without gradients; the best picture is kept.

        n ~ N(0, I);  keep x_0(n), the chain from n
        for k = 1 ... iterations:
            n_j = sqrt(1 - radius²) n + radius z_j,   z_j ~ N(0, I),   j = 1 ... N
            x_j = the chain from n_j
            where the best r(D(x_j)) is above the kept one's:  n, x_0 <- n_j, x_j
        return the kept x_0

    Ma et al. 2025 take N = 2 to 8 neighbours of FLUX.1-dev's noise, whose distance they set. At radius 1 it is best-of-N.
    """

    particles: Particles = 4
    iterations: Annotated[int, Ge(1), Doc("rounds of N neighbours, after the evaluation of the first x_T.")] = 4
    radius: Annotated[float, Gt(0), Le(1), Doc("λ, distance of a neighbour; at 1 it is independent of x_T.")] = 0.5
    name = "zo"
    paper = "Ma et al. 2025"
    density = False
    default_eta = 0.0

    def build(self, steps: int) -> Method:
        return Method("zo", engine=NoiseSearch(self.iterations, self.particles, self.radius))


@METHODS.register
@dataclass(frozen=True)
class SearchOverPaths(Preset):
    """Search over paths: branch at a noise level, keep the best particles, renoise them a little, and repeat.

        x^1 ... x^M at the noise level of ``start``, by the chain
        until x is clean:
            each x^m renoised by ``forward`` steps, N times;  each denoised by ``backward`` steps
            keep the M whose estimate x0 of the last step has the highest r(D(x0))
        return the best of M by the finished picture

    Ma et al. 2025, Δ_f and Δ_b in steps of the grid here. An image costs about M N backward / (backward - forward)
    evaluations a step.
    """

    particles: Particles = 2
    branches: Annotated[int, Ge(1), Doc("N, branches of each particle.")] = 2
    forward: Annotated[int, Ge(1), Doc("Δ_f, steps that a round renoises.")] = 1
    backward: Annotated[int, Ge(2), Doc("Δ_b, steps that a round then denoises; more than ``forward``.")] = 3
    start: Annotated[float, Gt(0), Lt(1), Doc("share of the chain before the first round.")] = 0.2
    name = "paths"
    paper = "Ma et al. 2025"
    density = False
    default_eta = 0.0

    def build(self, steps: int) -> Method:
        engine = PathSearch(self.branches, self.forward, self.backward, self.start)
        return Method("paths", self.particles, engine=engine, final="reward")


@METHODS.register
@dataclass(frozen=True)
class Lidar(Preset):
    """LiDAR: gradient-free guidance towards those of a few cheap look-ahead samples that have a high reward.

        x_0^j ~ the model in ``lookahead`` steps;  r^j = r(D(x_0^j)),  j = 1 ... samples
        x_T ~ N(0, I)
        for t = T ... 1:
            w = softmax_j(-|x_t - α_t x_0^j|² / (2 σ_t²)),   w* = softmax_j(-|x_t - α_t x_0^j|² / (2 σ_t²) + r^j / beta)
            x0* = x0(x_t) + strength Σ_j (w*^j - w^j) x_0^j
            x_{t-1} ~ N(mean(x_t, x0*), std²)
        return x_0 (of several particles, that of the highest r(D(x_0)))

    Kim et al. 2026 (arXiv 2602.03211): the expected future reward from samples of the marginal. Exact for the tilt as samples
    and both chains' steps grow. Theirs draw their samples by a distilled or few-step solver, 3 to 100 of them, and add the
    guidance to the score; here it is the same in x0.
    """

    particles: Annotated[int, Ge(1), Doc("N whole guided runs, the best kept.")] = 1
    samples: Annotated[int, Ge(2), Doc("M, look-ahead samples.")] = 8
    lookahead: Annotated[int, Ge(1), Doc("steps of each look-ahead sample.")] = 3
    beta: Beta = 0.05
    strength: Annotated[float, Ge(0), Doc("s, guidance strength; 1 targets the tilt.")] = 1.0
    name = "lidar"
    paper = "Kim et al. 2026"
    density = False
    published: ClassVar = {"samples": 50, "lookahead": 8}

    def build(self, steps: int) -> Method:
        engine = Lookahead(self.samples, self.lookahead, self.beta, self.strength)
        return Method("lidar", self.particles, engine=engine, final="reward" if self.particles > 1 else "first")
