"""Presets that push one stream (or the best of N) with gradients: dps, mpgd, freedom, ug, lgd, tfg.

Strengths under the rule "unit" are in units of the latents' own (a gradient of rms 1), so that one default serves rewards of
any scale; "plain" is the papers' own, in latents per reward.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tilting.presets.common import Climbing, Rule, Window, guide_gate, one_of

if TYPE_CHECKING:
    from tilting.guidance.kernel import Guide
    from tilting.guidance.slope import Estimator
    from tilting.method import Method
    from tilting.types import Watch

ALL: Window = (1.0, 0.0)
MIDDLE: Window = (0.7, 0.3)


@dataclass(frozen=True, kw_only=True)
class Guided(Climbing):
    """What every one of them has beside its own settings.

    Attributes:
        window: (high, low) bounds of t/T inside which it guides, and repeats.
        particles: N whole guided runs, the best kept.
    """

    window: Window = ALL
    particles: int = 1
    selects = False

    def _method(self, name: str, slope: Estimator, *guides: Guide, repeat: int = 1) -> Method:
        from tilting.method import Method

        gate = guide_gate(self.window)
        return Method(
            name, self.particles, guides=guides, slope=slope, guide_when=gate, repeat=repeat, repeat_when=gate,
            final="reward" if self.particles > 1 else "first",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Smoothed(Guided):
    """A reward averaged (log-mean-exp) over noised copies of the estimate. They cost decodes and reward calls, not evaluations.

    Attributes:
        samples: n, copies.
        radius: of their noise, relative to σ_t.
        tau: temperature of the log-mean-exp, in the reward's units.
    """

    samples: int = 1
    radius: float = 0.0
    tau: float = 1.0

    def _estimator(self, **options: Any) -> Estimator:
        return super()._estimator(samples=self.samples, radius=self.radius, tau=self.tau, **options)


@dataclass(frozen=True)
class Dps(Guided):
    """Diffusion posterior sampling: each drawn x_s moves along ∇_{x_t} r(D(x0)), through the denoiser.

    Chung et al. 2023. The paper's loss is a squared distance with ζ ∝ 1 / its norm, which is a step of normalised size: rule
    "unit".
    ``form`` "score" is reconstruction guidance (Ho et al. 2022): eps -= σ_t ζ ∇r, exact for a Gaussian base and a linear
    reward.

    Attributes:
        strength: ζ.
        rule: how ζ sizes the step.
        form: where the gradient goes: "step" onto the drawn point, "score" onto eps (then ζ is 1 / β and rule is not used).
    """

    strength: float = 0.05
    rule: Rule = "unit"
    form: Literal["step", "score"] = "step"
    name = "dps"
    paper = "Chung et al. 2023"
    cost = "N·T"
    density = True
    published: ClassVar[dict[str, Any]] = {"strength": 0.3, "rule": "plain", "steps": 1000}

    def build(self, steps: int) -> Method:
        from tilting.guidance.kernel import Mean, Score

        one_of("dps.form", self.form, ("step", "score"))
        guide = Score(self.strength) if self.form == "score" else Mean(self.strength, self.rule)
        return self._method("dps", self._estimator(), guide)


@dataclass(frozen=True)
class Mpgd(Guided):
    """Manifold-preserving guidance: the estimate x0 moves along ∇_{x0} r(D(x0)) and the step goes on; no gradient of the
    network.

    He et al. 2024. Paper: eps is kept. Published code: the posterior mean is computed again with x_t fixed, which shrinks the
    move 13-15 times and explains its large scale.

    Attributes:
        strength: c.
        rule: how c sizes the step.
        source: "paper" keeps eps, "code" keeps x_t.
    """

    strength: float = 0.2
    rule: Rule = "unit"
    source: Literal["paper", "code"] = "paper"
    window: Window = field(default=MIDDLE, kw_only=True)
    name = "mpgd"
    paper = "He et al. 2024"
    cost = "N·T"
    density = True
    published: ClassVar[dict[str, Any]] = {"strength": 7.5, "rule": "plain", "window": MIDDLE, "source": "code", "steps": 100}

    def build(self, steps: int) -> Method:
        from tilting.guidance.kernel import Clean

        one_of("mpgd.source", self.source, ("paper", "code"))
        how = self._estimator()
        guide = Clean(self.strength, 1, self.rule, "x" if self.source == "code" else "eps", estimator=how)
        return self._method("mpgd", how, guide)


@dataclass(frozen=True)
class FreeDoM(Guided):
    """FreeDoM: DPS's move with the CFG-norm rule, each step repeated ("time travel") inside a window.

    Yu et al. 2023. Repeats: 1 / 3 / 1 by window in the code, 10 in the CoDeX thesis. Its norms run over the whole batch;
    ours are per sample.

    Attributes:
        strength: ρ, relative to the CFG correction.
        repeat: K.
        rule: "cfg"; "unit" or "plain", with a strength to match, where there is no CFG correction.
    """

    strength: float = 0.2
    repeat: int = 3
    rule: Rule = "cfg"
    window: Window = field(default=MIDDLE, kw_only=True)
    name = "freedom"
    paper = "Yu et al. 2023"
    cost = "N·(T + (K - 1)·W), W steps in the window"
    density = False
    published: ClassVar[dict[str, Any]] = {"strength": 0.2, "repeat": 10, "window": MIDDLE, "steps": 100}

    def build(self, steps: int) -> Method:
        from tilting.guidance.kernel import Mean

        return self._method("freedom", self._estimator(), Mean(self.strength, self.rule), repeat=self.repeat)


@dataclass(frozen=True)
class Universal(Guided):
    """Universal Guidance: eps -= σ_t w ∇_{x_t} r forward, then m steps on the estimate x0 folded back into eps, repeated K
    times.

    Bansal et al. 2023, Alg. 1-2 (the published Stable Diffusion code leaves the backward part out: ``backward=0``).

    Attributes:
        strength: w of the forward part, 1 / β in the reward's units.
        backward: m, steps of the backward part.
        rate: size of a backward step.
        repeat: K.
    """

    strength: float = 5.0
    backward: int = 1
    rate: float = 0.05
    repeat: int = 1
    name = "ug"
    paper = "Bansal et al. 2023"
    cost = "N·(T + (K - 1)·W), W steps in the window"
    density = True
    published: ClassVar[dict[str, Any]] = {"strength": 30, "backward": 0, "repeat": 6, "steps": 100}
    published_for: ClassVar[dict[str, dict[str, Any]]] = {"pickscore": {"strength": 150}}

    def build(self, steps: int) -> Method:
        from tilting.guidance.kernel import Clean, Score

        how = self._estimator()
        guides: tuple[Guide, ...] = (Score(self.strength),)
        if self.backward:
            guides += (Clean(self.rate, self.backward, "unit", "x", estimator=how),)
        return self._method("ug", how, *guides, repeat=self.repeat)


@dataclass(frozen=True)
class Lgd(Smoothed):
    """Loss-guided diffusion: DPS with the reward averaged (log-mean-exp) over n noised copies of the estimate.

    Song et al. 2023. Their radius σ / sqrt(1 + σ²), σ in units of the signal, is σ_t here: ``radius`` 1.

    Attributes:
        strength: ζ.
        rule: how ζ sizes the step.
    """

    strength: float = 0.05
    rule: Rule = "unit"
    samples: int = field(default=4, kw_only=True)
    radius: float = field(default=0.3, kw_only=True)
    name = "lgd"
    paper = "Song et al. 2023"
    cost = "N·T"
    density = True
    published: ClassVar[dict[str, Any]] = {"samples": 10, "radius": 1.0, "rule": "plain"}

    def build(self, steps: int) -> Method:
        from tilting.guidance.kernel import Mean

        return self._method("lgd", self._estimator(), Mean(self.strength, self.rule))


@dataclass(frozen=True)
class Tfg(Smoothed):
    """Training-free guidance: FreeDoM's move, MPGD's move, smoothing and repeats in one, x_s = step + α_s/α_t Δ_t + α_s Δ_0.

    Ye et al. 2024. With μ = 0 it has FreeDoM's form, with ρ = 0 and m = K = 1 MPGD's. The paper also searches over ρ and μ
    that grow or shrink over the run; here they are constant.

    Attributes:
        rho: ρ, size of the move of x_t.
        mu: μ, size of each of the steps on x0.
        steps: m, steps on x0.
        repeat: K.
        radius: σ̄ of the smoothing, relative to σ_t.
        rule: how ρ and μ size their steps.
    """

    rho: float = 0.05
    mu: float = 0.05
    steps: int = 1
    repeat: int = 1
    rule: Rule = "unit"
    name = "tfg"
    paper = "Ye et al. 2024"
    cost = "N·(T + (K - 1)·W), W steps in the window"
    density = True
    published: ClassVar[dict[str, Any]] = {"steps": 4, "repeat": 1, "rho": 1, "mu": 2, "radius": 0.1, "rule": "plain"}

    def build(self, steps: int) -> Method:
        from tilting.guidance.kernel import Clean, Mean

        how = self._estimator()
        guides: tuple[Guide, ...] = ()
        if self.rho:
            guides += (Mean(self.rho, self.rule, "ratio"),)
        if self.mu and self.steps:
            guides += (Clean(self.mu, self.steps, self.rule, "eps", estimator=how),)
        return self._method("tfg", how, *guides, repeat=self.repeat)


@dataclass(frozen=True)
class WatchedDps(Dps):
    """Reconstruction guidance that is watched.

    Attributes:
        watch: called with the guided and the pre-trained prediction.
    """

    watch: Watch | None = field(default=None, compare=False)

    def build(self, steps: int) -> Method:
        from tilting.guidance.kernel import Watching

        method = super().build(steps)
        return method if self.watch is None else replace(method, guides=(*method.guides, Watching(self.watch)))


def reconstruction_guidance(gamma: float, particles: int = 1, watch: Watch | None = None) -> WatchedDps:
    """The preset of reconstruction guidance at strength γ, for a reward that is log p(y | x) itself (`likelihood`)."""
    return WatchedDps(gamma, form="score", particles=particles, watch=watch)
