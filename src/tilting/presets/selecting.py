"""Presets that choose among streams and need no gradient: base, bon, code, svdd, smc, fk, rbf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tilting.errors import TiltingError
from tilting.presets.common import Start, Unguided, block_of, selection

if TYPE_CHECKING:
    from tilting.method import Method


@dataclass(frozen=True)
class Base(Unguided):
    """The model by itself: one stream, no reward needed."""

    name = "base"
    paper = "Ho et al. 2020; Song et al. 2021"
    cost = "T"

    def build(self, steps: int) -> Method:
        from tilting.method import Method

        return Method(self.name)


@dataclass(frozen=True)
class SDEdit(Base):
    """The model started from a noised picture (--image, --strength), which composes with every other method.

    Meng et al. 2022. The reference is encoded, noised to the strength's share of the run, and the rest of the run is made.
    """

    name = "sdedit"
    paper = "Meng et al. 2022"
    cost = "r·T, r = --strength"
    published: ClassVar[dict[str, Any]] = {"steps": 100, "strength": 0.6}


@dataclass(frozen=True)
class BestOfN(Unguided):
    """N full runs, the one of the highest reward kept (re-ranking, Clark et al. 2024, App. A.3).

    Attributes:
        particles: N.
        start: draw N x_T, or copy one.
    """

    particles: int = 4
    start: Start = "independent"
    name = "bon"
    paper = "Clark et al. 2024, App. A.3"
    cost = "N·T"
    published: ClassVar[dict[str, Any]] = {"particles": 16}

    def build(self, steps: int) -> Method:
        from tilting.method import Method

        return Method("bon", self.particles, self.start, final="reward")


@dataclass(frozen=True)
class CoDe(Unguided):
    """CoDe(N, B): every B steps rank the streams by r(D(x0)) and copy the winner; the last step ranks real samples.

    Singh et al. 2025, Alg. 1; Alg. 6 of the CoDeX thesis. Published: SD 1.5, N = 4 or 40, B = 5, T = 500 DDPM, CFG 5
    (7.5 in the code). With ``beams`` it is latent beam search (Oshima et al. 2025).

    Attributes:
        particles: N.
        block: B; default 5, less in short runs.
        beams: how many streams survive a selection.
        tau: temperature of multinomial selection, in the reward's units; None selects greedily.
        start: the published code copies one x_T, CoDeX draws N.
    """

    particles: int = 4
    block: int | None = None
    beams: int = 1
    tau: float | None = None
    start: Start = "independent"
    name = "code"
    paper = "Singh et al. 2025"
    cost = "N·T"
    density = False
    published: ClassVar[dict[str, Any]] = {"particles": 4, "block": 5, "start": "copy", "steps": 500, "cfg": 5}
    published_for: ClassVar[dict[str, dict[str, Any]]] = {"image": {"steps": 100}}
    selects = True

    def build(self, steps: int) -> Method:
        from tilting.method import Every, Method

        return Method(
            "code", self.particles, self.start, select=selection(self.tau, beams=self.beams), final="reward",
            select_when=Every(block_of(self.block, steps, 5)),
        )  # fmt: skip


@dataclass(frozen=True)
class Svdd(Unguided):
    """SVDD (posterior mean): M children at every step, one of them kept by its value, all others forgotten.

    Li et al. 2024. On one image it is CoDe(B = 1) but for the last step, where the real samples are not ranked.

    Attributes:
        particles: M, children of the one parent.
        tau: temperature of the softmax that draws the child; None keeps the best.
    """

    particles: int = 4
    tau: float | None = None
    name = "svdd"
    paper = "Li et al. 2024"
    cost = "M·T"
    density = False
    published: ClassVar[dict[str, Any]] = {"particles": 20, "tau": None}
    selects = True

    def build(self, steps: int) -> Method:
        from tilting.method import Every, Method
        from tilting.select import Greedy, Multinomial

        select = Multinomial(self.tau, shared=True) if self.tau else Greedy()
        return Method("svdd", self.particles, "copy", select=select, select_when=Every(1), final="first")


@dataclass(frozen=True)
class SmcTilt(Unguided):
    """Sequential Monte Carlo towards p ∝ p_pre exp(r/β) with the base kernel as proposal; returns the heaviest particle.

    Exact for the tilt of the same chain as N grows (the gradient-free case of TDS, Wu et al. 2023).

    Attributes:
        particles: N.
        beta: temperature of the tilt, in the reward's units.
        block: draws between weightings; default 5, less in short runs.
        share: resample below this share of N effective particles.
        scheme: how streams are resampled.
        start: draw N x_T, or copy one.
    """

    particles: int = 4
    beta: float = 0.05
    block: int | None = None
    share: float = 0.5
    scheme: Literal["systematic", "ssp", "multinomial"] = "systematic"
    start: Start = "independent"
    name = "smc"
    paper = "Wu et al. 2023"
    cost = "N·T"
    selects = True

    def build(self, steps: int) -> Method:
        from tilting.method import Every, Method
        from tilting.select import Smc

        return Method(
            "smc", self.particles, self.start, select=Smc(self.beta, self.share, scheme=self.scheme), final="weight",
            select_when=Every(block_of(self.block, steps, 5)),
        )  # fmt: skip


@dataclass(frozen=True)
class FkSteering(Unguided):
    """FK steering: particles resampled by a potential of the rewards seen so far; the one of highest reward is returned.

    Singhal et al. 2025. Potentials: exp(λ (r_t - r_before)), exp(λ max r) or exp(λ Σ r); with the last one, which makes their
    product exp(λ r(x_0)), the weighted particles are exact for the tilt of the chain.

    Attributes:
        particles: N.
        strength: λ = 1 / β.
        potential: which.
        block: draws between resamplings; default T / 5 (every 20 of 100 steps).
        share: resample below this share of N effective particles; 1 always does.
        start: draw N x_T, or copy one.
    """

    particles: int = 4
    strength: float = 20.0
    potential: Literal["difference", "max", "sum"] = "max"
    block: int | None = None
    share: float = 1.0
    start: Start = "independent"
    name = "fk"
    paper = "Singhal et al. 2025"
    cost = "N·T"
    published: ClassVar[dict[str, Any]] = {"particles": 4, "strength": 10, "potential": "max", "block": 20, "steps": 100}
    selects = True

    def build(self, steps: int) -> Method:
        from tilting.method import Every, Method
        from tilting.select import Smc

        if not self.strength > 0:
            raise TiltingError(f"fk.strength must be above 0, not {self.strength}")
        select = Smc(1 / self.strength, self.share, self.potential, scheme="multinomial")
        block = max(1, steps // 5) if self.block is None else self.block
        return Method("fk", self.particles, self.start, select=select, select_when=Every(block), final="reward")


@dataclass(frozen=True)
class Rollover(Unguided):
    """Rollover budget forcing: children are drawn until one beats its parent, and what is saved is spent later.

    Kim et al. 2025 (arXiv 2503.19385). One stream; the cost is the most that it can be.

    Attributes:
        particles: N, the mean number of children per step.
    """

    particles: int = 4
    name = "rbf"
    paper = "Kim et al. 2025b"
    cost = "≤ 1 + N·(T - 1)"
    density = False
    published: ClassVar[dict[str, Any]] = {"particles": 50, "steps": 10}
    selects = True

    def build(self, steps: int) -> Method:
        from tilting.engines.budget import Budget
        from tilting.method import Method

        return Method("rbf", 1, engine=Budget(self.particles))
