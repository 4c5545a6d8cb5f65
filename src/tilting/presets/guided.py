"""Presets that move one particle (or the best of N) by gradients: dps, mpgd, freedom, ug, lgd, tfg.

Strengths under the rule "unit" are in units of the latents' own (a gradient of rms 1), so that one default serves rewards of
any scale; "plain" is the papers' own, in latents per reward.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from tilting.declare import Doc, Window
from tilting.guidance.kernel import Clean, Guide, Mean, Score, Watching
from tilting.guidance.value_and_grad import Estimator, Rule
from tilting.method import Every, Method
from tilting.presets.common import METHODS, GradientPreset, one_of
from tilting.types import Watch

ALL, MIDDLE = (1.0, 0.0), (0.7, 0.3)

GuideWindow = Annotated[Window, Doc("(high, low) bounds of t/T inside which steps are guided and repeated.")]
Repeat = Annotated[int, Ge(1), Doc("K, how often each step is made.")]
Samples = Annotated[int, Ge(1), Doc("n, noisy copies of the estimate.")]
Radius = Annotated[float, Ge(0), Doc("std of the copies' noise, relative to σ_t.")]
Zeta = Annotated[float, Doc("ζ, guidance strength.")]
ZetaRule = Annotated[Rule, Doc("how ζ sets the step size.")]


@dataclass(frozen=True, kw_only=True)
class Guided(GradientPreset):
    """What every one of them has beside its own settings."""

    window: GuideWindow = ALL
    particles: Annotated[int, Ge(1), Doc("N whole guided runs, the best kept.")] = 1

    def _method(self, name: str, estimator: Estimator, *guides: Guide, repeat: int = 1) -> Method:
        gate = Every(1, self.window, at_start=True)
        return Method(
            name,
            self.particles,
            guides=guides,
            estimator=estimator,
            guide_when=gate,
            repeat=repeat,
            repeat_when=gate,
            final="reward" if self.particles > 1 else "first",
        )


@dataclass(frozen=True, kw_only=True)
class Smoothed(Guided):
    """A reward averaged (log-mean-exp) over noised copies of the estimate. They cost decodes and reward calls, not
    evaluations."""

    samples: Samples = 1
    radius: Radius = 0.0
    tau: Annotated[float, Ge(0), Doc("temperature of the log-mean-exp, in the reward's units.")] = 1.0

    def _estimator(self, **options: Any) -> Estimator:
        return super()._estimator(samples=self.samples, radius=self.radius, tau=self.tau, **options)


@METHODS.register
@dataclass(frozen=True)
class Dps(Guided):
    """Diffusion posterior sampling: each drawn x_s moves along ∇_{x_t} r(D(x0)), through the denoiser.

        x_T ~ N(0, I)
        for t = T ... 1:
            g = ∇_{x_t} r(D(x0(x_t)))
            x_{t-1} ~ N(mean(x_t, x0(x_t)), std²)
            if t/T is in window:  x_{t-1} <- x_{t-1} + s g,  s = strength / rms(g) by the rule "unit"
        return x_0

    Chung et al. 2023. The paper's loss is a squared distance with ζ ∝ 1 / its norm, which is a step of normalised size: rule
    "unit".
    ``form`` "score" is reconstruction guidance (Ho et al. 2022): eps -= σ_t ζ ∇r, exact for a Gaussian base and a linear
    reward.
    """

    strength: Zeta = 0.05
    rule: ZetaRule = "unit"
    form: Annotated[
        Literal["step", "score"],
        Doc('where the gradient is added: "step" to the drawn point, "score" to eps (then ζ is 1 / β and rule is not used).'),
    ] = "step"
    name = "dps"
    paper = "Chung et al. 2023"
    published: ClassVar = {"strength": 0.3, "rule": "plain", "steps": 1000}

    def build(self, steps: int) -> Method:
        one_of("dps.form", self.form, ("step", "score"))
        guide = Score(self.strength) if self.form == "score" else Mean(self.strength, self.rule)
        return self._method("dps", self._estimator(), guide)


@METHODS.register
@dataclass(frozen=True)
class Mpgd(Guided):
    """Manifold-preserving guidance: the estimate x0 moves along ∇_{x0} r(D(x0)) and the step goes on; no gradient of the
    network.

        x_T ~ N(0, I)
        for t = T ... 1:
            eps, x0 = the model at x_t
            if t/T is in window:
                g = ∇_{x0} r(D(x0))
                x0 <- x0 + s g,  s = strength / rms(g) by the rule "unit"
                source "code":  eps <- (x_t - α_t x0) / σ_t
            x_{t-1} ~ N(mean(eps, x0), std²)
        return x_0

    He et al. 2024. Paper: eps is kept. Published code: the posterior mean is computed again with x_t fixed, which shrinks the
    move 13-15 times and explains its large scale.
    """

    strength: Annotated[float, Doc("c, step size on x0.")] = 0.2
    rule: Annotated[Rule, Doc("how c sets the step size.")] = "unit"
    source: Annotated[Literal["paper", "code"], Doc('"paper" keeps eps, "code" keeps x_t.')] = "paper"
    window: GuideWindow = field(default=MIDDLE, kw_only=True)
    name = "mpgd"
    paper = "He et al. 2024"
    published: ClassVar = {"strength": 7.5, "rule": "plain", "window": MIDDLE, "source": "code", "steps": 100}

    def build(self, steps: int) -> Method:
        one_of("mpgd.source", self.source, ("paper", "code"))
        how = self._estimator()
        guide = Clean(self.strength, 1, self.rule, "x" if self.source == "code" else "eps", estimator=how)
        return self._method("mpgd", how, guide)


@METHODS.register
@dataclass(frozen=True)
class FreeDoM(Guided):
    """FreeDoM: DPS's move with the CFG-norm rule, each step repeated ("time travel") inside a window.

        x_T ~ N(0, I)
        for t = T ... 1:
            for k = repeat ... 1, or once outside window:
                g = ∇_{x_t} r(D(x0(x_t)))
                x_{t-1} ~ N(mean(x_t, x0(x_t)), std²)
                x_{t-1} <- x_{t-1} + strength · w_cfg · rms(eps_cond - eps_uncond) / rms(g) · g        (in window)
                if k > 1:  x_t <- a x_{t-1} + sqrt(σ_t² - a² σ_{t-1}²) ε,  a = α_t / α_{t-1}
        return x_0

    Yu et al. 2023. Repeats: 1 / 3 / 1 by window in the code, 10 in the CoDeX thesis. Its norms run over the whole batch;
    ours are per sample.
    """

    strength: Annotated[float, Doc("ρ, relative to the CFG correction.")] = 0.2
    repeat: Repeat = 3
    rule: Annotated[Rule, Doc('"cfg"; without a CFG correction, "unit" or "plain" with a strength to match.')] = "cfg"
    window: GuideWindow = field(default=MIDDLE, kw_only=True)
    name = "freedom"
    paper = "Yu et al. 2023"
    density = False
    published: ClassVar = {"strength": 0.2, "repeat": 10, "window": MIDDLE, "steps": 100}

    def build(self, steps: int) -> Method:
        return self._method("freedom", self._estimator(), Mean(self.strength, self.rule), repeat=self.repeat)


@METHODS.register
@dataclass(frozen=True)
class Universal(Guided):
    """Universal Guidance: eps -= σ_t w ∇_{x_t} r forward, then m steps on the estimate x0 folded back into eps, repeated K
    times.

        x_T ~ N(0, I)
        for t = T ... 1:
            for k = repeat ... 1:
                eps, x0 = the model at x_t
                eps <- eps - σ_t strength ∇_{x_t} r(D(x0))                                 forward
                Δ = 0;  backward times:  g = ∇ r(D(x0 + Δ)),  Δ <- Δ + rate g / rms(g)
                eps <- eps - α_t / σ_t Δ                                                   backward
                x_{t-1} ~ N(mean(x_t, eps), std²)
                if k > 1:  x_t <- x_{t-1} noised back to t
        return x_0

    Bansal et al. 2023, Alg. 1-2 (the published Stable Diffusion code leaves the backward part out: ``backward=0``).
    """

    strength: Annotated[float, Doc("w of the forward part, 1 / β in the reward's units.")] = 5.0
    backward: Annotated[int, Ge(0), Doc("m, steps of the backward part.")] = 1
    rate: Annotated[float, Gt(0), Doc("step size of the backward part.")] = 0.05
    repeat: Repeat = 1
    name = "ug"
    paper = "Bansal et al. 2023"
    published: ClassVar = {"strength": 30, "backward": 0, "repeat": 6, "steps": 100}
    published_for: ClassVar = {"pickscore": {"strength": 150}}

    def build(self, steps: int) -> Method:
        how = self._estimator()
        guides: tuple[Guide, ...] = (Score(self.strength),)
        if self.backward:
            guides += (Clean(self.rate, self.backward, "unit", "x", estimator=how),)
        return self._method("ug", how, *guides, repeat=self.repeat)


@METHODS.register
@dataclass(frozen=True)
class Lgd(Smoothed):
    """Loss-guided diffusion: DPS with the reward averaged (log-mean-exp) over n noised copies of the estimate.

        x_T ~ N(0, I)
        for t = T ... 1:
            z_j ~ N(0, I),  j = 1 ... samples
            r~ = tau log 1/n Σ_j exp(r(D(x0(x_t) + radius σ_t z_j)) / tau)
            g = ∇_{x_t} r~
            x_{t-1} ~ N(mean(x_t, x0(x_t)), std²)
            x_{t-1} <- x_{t-1} + s g,  s = strength / rms(g) by the rule "unit"
        return x_0

    Song et al. 2023. Their radius σ / sqrt(1 + σ²), σ in units of the signal, is σ_t here: ``radius`` 1.
    """

    strength: Zeta = 0.05
    rule: ZetaRule = "unit"
    samples: Samples = field(default=4, kw_only=True)
    radius: Radius = field(default=0.3, kw_only=True)
    name = "lgd"
    paper = "Song et al. 2023"
    published: ClassVar = {"samples": 10, "radius": 1.0, "rule": "plain"}

    def build(self, steps: int) -> Method:
        return self._method("lgd", self._estimator(), Mean(self.strength, self.rule))


@METHODS.register
@dataclass(frozen=True)
class Tfg(Smoothed):
    """Training-free guidance: FreeDoM's move, MPGD's move, smoothing and repeats in one, x_s = step + α_s/α_t Δ_t + α_s Δ_0.

        x_T ~ N(0, I)
        for t = T ... 1:
            for k = repeat ... 1:
                g = ∇_{x_t} r~(x0(x_t))                          r~ smoothed as in lgd, of samples and radius
                Δ_t = rho g / rms(g)
                Δ_0 = 0;  steps times:  h = ∇ r~(x0 + Δ_0),  Δ_0 <- Δ_0 + mu h / rms(h)
                x_{t-1} ~ N(mean(x_t, x0 + Δ_0), std²)
                x_{t-1} <- x_{t-1} + α_{t-1} / α_t Δ_t
                if k > 1:  x_t <- x_{t-1} noised back to t
        return x_0

    Ye et al. 2024. With μ = 0 it has FreeDoM's form, with ρ = 0 and m = K = 1 MPGD's. The paper also searches over ρ and μ
    that grow or shrink over the run; here they are constant.
    """

    rho: Annotated[float, Doc("ρ, step size on x_t.")] = 0.05
    mu: Annotated[float, Doc("μ, step size on x0.")] = 0.05
    steps: Annotated[int, Ge(0), Doc("m, steps on x0.")] = 1
    repeat: Repeat = 1
    rule: Annotated[Rule, Doc("how ρ and μ set the step sizes.")] = "unit"
    radius: Annotated[float, Ge(0), Doc("σ̄ of the smoothing, relative to σ_t.")] = field(default=0.0, kw_only=True)
    name = "tfg"
    paper = "Ye et al. 2024"
    published: ClassVar = {"steps": 4, "repeat": 1, "rho": 1, "mu": 2, "radius": 0.1, "rule": "plain"}

    def build(self, steps: int) -> Method:
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
        method = super().build(steps)
        return method if self.watch is None else replace(method, guides=(*method.guides, Watching(self.watch)))


def reconstruction_guidance(gamma: float, particles: int = 1, watch: Watch | None = None) -> WatchedDps:
    """The preset of reconstruction guidance at strength γ, for a reward that is log p(y | x) itself (`likelihood`)."""
    return WatchedDps(gamma, form="score", particles=particles, watch=watch)
