"""CoDeX complete: blockwise selection and blockwise gradients, with every variant of the thesis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from tilting.declare import Alias, Doc, Each, Window
from tilting.errors import TiltingError
from tilting.guidance.gradient import RewardGradient
from tilting.guidance.value_and_grad import Rule
from tilting.method import Every, Method
from tilting.presets.common import METHODS, GradientPreset, Particles, Start, one_of
from tilting.presets.selecting import block_of, selection


@METHODS.register
@dataclass(frozen=True)
class CoDeX(GradientPreset):
    """CoDeX(N, B_s, B_g, γ, τ): CoDe with a gradient step on every particle every B_g steps (the CoDeX thesis, Alg. 1-3).

        x_T^i ~ N(0, I),  i = 1 ... particles
        for t = T ... 1:
            if gradient_block draws were made since the last gradient, and t/T is in window:
                g = ∇_{x_t} r(D(x0(x_t^i)))                  of every particle, or shared (gradient_on)
                x_t^i <- x_t^i + strength · w_cfg · rms(eps_cond - eps_uncond) / rms(g) · g
            if block draws were made since the last selection:
                v^i = r(D(x0(x_t^i)))
                x_t^i <- x_t^j,  j the best, or with tau drawn with P(j) ∝ exp(v^j / tau)
            x_{t-1}^i ~ N(mean(x_t^i, x0(x_t^i)), std²)
        return x_0^i of the highest r(D(x_0^i))

    Published: the aesthetic score's row of Table 1; with PickScore (A.3) and from a picture (A.5) others. Alg. 1 read literally
    also moves z_0; no round is spent there. Times are those of the latents moved and bounds count: t/T ≤ .6 holds 60 rounds at
    T = 500, B_g = 5, where the published count is 59.
    """

    particles: Particles = 4
    block: Annotated[
        int | None,
        Ge(1),
        Doc("B_s, draws between selections; default 5, less in short runs and where a schedule's parts are shorter."),
    ] = None
    gradient_block: Annotated[
        int | None,
        Ge(1),
        Doc("B_g, draws between gradient rounds; default 2, so that a run of 25 to 50 steps has a dozen or two."),
    ] = None
    strength: Annotated[float, Doc("γ, relative to the CFG correction.")] = 0.2
    window: Annotated[Window, Doc("(high, low) bounds of t/T inside which gradients are taken.")] = (0.6, 0.0)
    tau: Annotated[float | None, Ge(0), Doc("temperature of multinomial selection; None selects greedily.")] = None
    tau_end: Annotated[
        float | None,
        Gt(0),
        Doc("temperature at the end of the run, reached geometrically (named as future work in the thesis)."),
    ] = None
    schedule: Annotated[
        tuple[int, ...] | None,
        Each(Ge(1)),
        Doc("schedule of N: one value for each of as many equal parts of the run; the thesis has ten."),
    ] = None
    gradient_on: Annotated[
        Literal["all", "medoid", "mean", "winner"],
        Alias("share"),
        Doc(
            'where gradients are computed: "all" particles, "medoid" or "mean" of k-means clusters, or the "winner" (ch. 7.2).'
        ),
    ] = "all"
    clusters: Annotated[int, Ge(0), Doc("k; 0 takes half the particles.")] = 0
    start: Annotated[Start, Doc("independent x_T (Alg. 1) or one copied (the published code).")] = "independent"
    source: Annotated[
        Literal["paper", "code"],
        Doc('"paper" takes the gradient through the denoiser; "code" through the decoder alone and caps the scale at 150.'),
    ] = "paper"
    rule: Annotated[
        Rule, Doc('"cfg", the CFG-norm rule (App. A.1); with "unit" or "plain", ``strength`` is an absolute step size.')
    ] = "cfg"
    name = "codex"
    paper = "the CoDeX thesis, Alg. 1-3"
    selects, density = True, False
    published: ClassVar = {
        "particles": 4,
        "block": 5,
        "gradient_block": 5,
        "strength": 0.2,
        "window": (0.6, 0.0),
        "tau": 0.001,
        "schedule": (2, 2, 2, 4, 4, 4, 4, 6, 6, 6),
        "steps": 500,
        "cfg": 5,
    }
    published_for: ClassVar = {
        "pickscore": {"gradient_block": 4, "window": (1.0, 0.0), "tau": 0.0003, "schedule": (2, 6, 6, 2, 2, 2, 4, 4, 6, 6)},
        "image": {"gradient_block": 2, "strength": 0.4, "window": (1.0, 0.0), "tau": 0.0003, "schedule": None, "steps": 100},
    }

    def build(self, steps: int) -> Method:
        one_of("codex.source", self.source, ("paper", "code"))
        on_winner = self.gradient_on == "winner"
        if on_winner and self.tau:
            raise TiltingError("codex.gradient_on=winner moves one greedy winner: leave codex.tau unset")
        if on_winner and self.gradient_block is not None:
            raise TiltingError("codex.gradient_on=winner moves the winner of every selection: leave codex.gradient_block unset")
        if self.clusters and self.gradient_on not in ("medoid", "mean"):
            raise TiltingError(
                f"codex.clusters are those of codex.gradient_on=medoid or mean, and codex.gradient_on is {self.gradient_on}"
            )
        code, block = self.source == "code", block_of(self.block, steps, 5)
        if self.schedule and self.block is None:  # a value is taken up at a selection: each part of the run must have one
            block = max(1, min(block, steps // len(self.schedule)))
        gradients = block if on_winner else block_of(self.gradient_block, steps, 2)
        how = self._estimator(through="decoder" if code else "denoiser")
        return Method(
            "codex",
            self.particles,
            self.start,
            self.schedule or (),
            correct=RewardGradient(self.strength, how, self.rule, 150.0 if code else None),
            correct_when=Every(gradients, self.window),
            correct_on=self.gradient_on,
            clusters=self.clusters,
            select=selection(self.tau, self.tau_end),
            select_when=Every(block),
            final="reward",
        )
