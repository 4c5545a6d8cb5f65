"""CoDeX complete: blockwise selection and blockwise gradients, with every variant of the thesis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tilting.errors import TiltingError
from tilting.presets.common import Climbing, Rule, Start, Window, block_of, one_of, selection

if TYPE_CHECKING:
    from tilting.method import Method


@dataclass(frozen=True)
class CoDeX(Climbing):
    """CoDeX(N, B_s, B_g, γ, τ): CoDe with a gradient step on every stream every B_g steps (the CoDeX thesis, Alg. 1-3).

    Published: the aesthetic score's row of Table 1; with PickScore (A.3) and from a picture (A.5) others. Alg. 1 read literally
    also moves z_0; no round is spent there. Times are those of the latents moved and bounds count: t/T ≤ .6 holds 60 rounds at
    T = 500, B_g = 5, where the published count is 59.

    Attributes:
        particles: N.
        block: B_s, draws between selections; default 5, less in short runs and where a schedule's parts are shorter.
        gradient_block: B_g, draws between gradient rounds; default 2, so that a run of 25 to 50 steps has a dozen or two.
        strength: γ, relative to the CFG correction.
        window: (high, low) bounds of t/T inside which gradients are taken.
        tau: temperature of multinomial selection; None selects greedily.
        tau_end: temperature at the end of the run, reached geometrically (named as future work in the thesis).
        schedule: N of each of so many equal parts of the run, taken up at the selections; the thesis has ten values.
        share: streams that find a gradient: "all", the "medoid" or "mean" of k-means clusters, or the "winner" (ch. 7.2).
        clusters: k; 0 takes half the streams.
        start: independent x_T (Alg. 1) or one copied (the published code).
        source: "paper" takes the gradient through the denoiser; "code" through the decoder alone and caps the scale at 150.
        rule: "cfg", the CFG-norm rule (App. A.1); "unit" or "plain" make ``strength`` a size of its own.
    """

    particles: int = 4
    block: int | None = None
    gradient_block: int | None = None
    strength: float = 0.2
    window: Window = (0.6, 0.0)
    tau: float | None = None
    tau_end: float | None = None
    schedule: tuple[int, ...] | None = None
    share: Literal["all", "medoid", "mean", "winner"] = "all"
    clusters: int = 0
    start: Start = "independent"
    source: Literal["paper", "code"] = "paper"
    rule: Rule = "cfg"
    name = "codex"
    paper = "the CoDeX thesis, Alg. 1-3"
    cost = "N·(T + G); shared N·T + k·G; winner N·T + 2·G"
    density = False
    published: ClassVar[dict[str, Any]] = {
        "particles": 4, "block": 5, "gradient_block": 5, "strength": 0.2, "window": (0.6, 0.0), "tau": 0.001,
        "schedule": (2, 2, 2, 4, 4, 4, 4, 6, 6, 6), "steps": 500, "cfg": 5,
    }  # fmt: skip
    published_for: ClassVar[dict[str, dict[str, Any]]] = {
        "pickscore": {
            "gradient_block": 4, "window": (1.0, 0.0), "tau": 0.0003, "schedule": (2, 6, 6, 2, 2, 2, 4, 4, 6, 6),
        },
        "image": {
            "gradient_block": 2, "strength": 0.4, "window": (1.0, 0.0), "tau": 0.0003, "schedule": None, "steps": 100,
        },
    }  # fmt: skip
    selects = True

    def build(self, steps: int) -> Method:
        from tilting.guidance.gradient import RewardGradient
        from tilting.method import Every, Method

        one_of("codex.source", self.source, ("paper", "code"))
        if self.share == "winner" and self.tau:
            raise TiltingError("codex.share=winner moves one greedy winner: leave codex.tau unset")
        if self.share == "winner" and self.gradient_block is not None:
            raise TiltingError("codex.share=winner moves the winner of every selection: leave codex.gradient_block unset")
        if self.clusters and self.share not in ("medoid", "mean"):
            raise TiltingError(f"codex.clusters are those of codex.share=medoid or mean, and codex.share is {self.share}")
        code = self.source == "code"
        how = self._estimator(through="decoder" if code else "denoiser")
        block = block_of(self.block, steps, 5)
        if self.schedule and self.block is None:  # a value is taken up at a selection: each part of the run must have one
            block = max(1, min(block, steps // len(self.schedule)))
        gradients = block if self.share == "winner" else block_of(self.gradient_block, steps, 2)
        return Method(
            "codex", self.particles, self.start, self.schedule or (),
            correct=RewardGradient(self.strength, how, self.rule, 150.0 if code else None),
            correct_when=Every(gradients, self.window), correct_on=self.share, clusters=self.clusters,
            select=selection(self.tau, self.tau_end), select_when=Every(block), final="reward",
        )  # fmt: skip
