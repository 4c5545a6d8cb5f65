"""Presets that optimise the starting noise through the whole chain: reno, doodl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from tilting.declare import Doc
from tilting.engines.optimise import Optimise
from tilting.method import Method
from tilting.presets.common import METHODS, GradientPreset

Rate = Annotated[float, Gt(0), Doc("learning rate.")]


@dataclass(frozen=True)
class Optimised(GradientPreset):
    """Gradient ascent on the starting noise through the whole chain; the best picture is kept."""

    iterations: Annotated[int, Ge(2), Doc("I, looks at x_0, each but the last updated from.")] = 10
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
    clip: Annotated[float, Gt(0), Doc("largest norm of an image's gradient.")] = 0.1
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
