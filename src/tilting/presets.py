"""The named methods: frozen settings with a ``build(steps)`` that composes them out of parts for a run of T steps.

Every field's default is the model pocket's; ``PUBLISHED`` beside a preset holds what its paper used. Fields that count in
steps may be None, and then scale with T, so that an unset default never causes a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from tilting.errors import TiltingError

if TYPE_CHECKING:  # settings are read and checked without torch; parts are imported when they are built
    from tilting.sample import Method
    from tilting.select import Select


class Preset(Protocol):
    """Settings of a published method.

    Attributes:
        name: of the preset.
        selects: whether it selects in blocks, and so needs eta > 0.
        climbs: whether it needs the reward's gradient.
    """

    @property
    def name(self) -> str: ...

    @property
    def selects(self) -> bool: ...

    @property
    def climbs(self) -> bool: ...

    def build(self, steps: int) -> Method:
        """The method for a run of that many steps."""
        ...


def block_of(block: int | None, steps: int, usual: int) -> int:
    """A block length in steps: the given one, else the usual one clamped so that it fires in a short run."""
    return block if block is not None else max(1, min(usual, (steps - 1) // 2))


def _selection(tau: float | None) -> Select:
    from tilting.select import Greedy, Multinomial

    return Greedy() if tau is None or tau == 0 else Multinomial(tau)


@dataclass(frozen=True)
class Base:
    """The model by itself: one stream, no reward needed."""

    name = "base"
    selects, climbs = False, False
    cost = "T"

    def build(self, steps: int) -> Method:
        from tilting.sample import Method

        return Method("base")


@dataclass(frozen=True)
class BestOfN:
    """N full runs, the one of the highest reward kept (re-ranking, Clark et al. 2024, App. A.3).

    Attributes:
        particles: N.
        start: "independent" x_T, or one copied ("copy", as published CoDe code does; needs eta > 0).
    """

    particles: int = 4
    start: Literal["independent", "copy"] = "independent"
    name = "bon"
    selects, climbs = False, False
    cost = "N·T"

    def build(self, steps: int) -> Method:
        from tilting.sample import Method

        return Method("bon", self.particles, self.start, final="reward")


@dataclass(frozen=True)
class CoDe:
    """CoDe(N, B): every B steps rank the streams by r(D(x0)) and copy the winner; the last step ranks real samples.

    Singh et al. 2025, Alg. 1; Alg. 6 of the CoDeX thesis. Published: SD 1.5, N = 4 or 40, B = 5, T = 500 DDPM, CFG 5
    (7.5 in the code).

    Attributes:
        particles: N.
        block: B; default 5, less in short runs.
        tau: temperature of multinomial selection, in the reward's units; None selects greedily.
        start: the published code copies one x_T, CoDeX draws N.
    """

    particles: int = 4
    block: int | None = None
    tau: float | None = None
    start: Literal["independent", "copy"] = "independent"
    name = "code"
    selects, climbs = True, False
    cost = "N·T"

    def build(self, steps: int) -> Method:
        from tilting.sample import Every, Method

        return Method(
            "code", self.particles, self.start, select=_selection(self.tau), final="reward",
            select_when=Every(block_of(self.block, steps, 5)),
        )  # fmt: skip


@dataclass(frozen=True)
class CoDeX:
    """CoDeX(N, B_s, B_g, γ, τ): CoDe with a gradient step on every stream every B_g steps (the CoDeX thesis, Alg. 1-3).

    Published: T = 500, N = 4, B_s = 5, B_g = 5 (aesthetic) / 4 (PickScore), γ = .2, window t/T ≤ .6 (aesthetic) / all
    (PickScore), τ = .001 / .0003 or greedy. Alg. 1 read literally also moves z_0; no round is spent there.

    Attributes:
        particles: N.
        block: B_s, draws between selections; default 5, less in short runs.
        gradient_block: B_g, draws between gradient rounds; default 2, so that a run of 25 to 50 steps has a dozen or two.
        strength: γ, relative to the CFG correction.
        window: (high, low) bounds of t/T inside which gradients are taken.
        tau: temperature of multinomial selection; None selects greedily.
        start: independent x_T (Alg. 1) or one copied (the published code).
        source: "paper" takes the gradient through the denoiser; "code" through the decoder alone and caps the scale at 150.
        rescale: the CFG-norm rule; off makes ``strength`` the plain step size.
    """

    particles: int = 4
    block: int | None = None
    gradient_block: int | None = None
    strength: float = 0.2
    window: tuple[float, float] = (0.6, 0.0)
    tau: float | None = None
    start: Literal["independent", "copy"] = "independent"
    source: Literal["paper", "code"] = "paper"
    rescale: bool = True
    name = "codex"
    selects, climbs = True, True
    cost = "N·(T + G), G gradient rounds"

    def build(self, steps: int) -> Method:
        from tilting.guidance.gradient import RewardGradient
        from tilting.sample import Every, Method

        if self.source not in ("paper", "code"):
            raise TiltingError(f"codex.source is paper or code, not {self.source!r}")
        code = self.source == "code"
        gradient = RewardGradient(self.strength, "decoder" if code else "denoiser", self.rescale, 150.0 if code else None)
        return Method(
            "codex", self.particles, self.start, correct=gradient,
            correct_when=Every(block_of(self.gradient_block, steps, 2), self.window), select=_selection(self.tau),
            select_when=Every(block_of(self.block, steps, 5)), final="reward",
        )  # fmt: skip


@dataclass(frozen=True)
class SmcTilt:
    """Sequential Monte Carlo towards p ∝ p_pre exp(r/β) with the base kernel as proposal; returns the heaviest particle.

    FK steering (Singhal et al. 2025) with the difference potential and ESS-triggered systematic resampling; exact for the
    tilt of the same chain as N grows.

    Attributes:
        particles: N.
        beta: temperature of the tilt, in the reward's units.
        block: draws between weightings; default 5, less in short runs.
        share: resample below this share of N effective particles.
    """

    particles: int = 8
    beta: float = 0.05
    block: int | None = None
    share: float = 0.5
    name = "smc"
    selects, climbs = True, False
    cost = "N·T"

    def build(self, steps: int) -> Method:
        from tilting.sample import Every, Method
        from tilting.select import Smc

        return Method(
            "smc", self.particles, select=Smc(self.beta, self.share), final="weight",
            select_when=Every(block_of(self.block, steps, 5)),
        )  # fmt: skip


base, bon, code, codex, smc = Base, BestOfN, CoDe, CoDeX, SmcTilt
PRESETS: dict[str, type[Preset]] = {"base": Base, "bon": BestOfN, "code": CoDe, "codex": CoDeX, "smc": SmcTilt}
