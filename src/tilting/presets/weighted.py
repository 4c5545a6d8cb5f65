"""Presets of weighted particles with a gradient in the proposal: tds, das. Exact for the tilt of the same chain as N grows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tilting.errors import TiltingError
from tilting.presets.common import Climbing, Start

if TYPE_CHECKING:
    from tilting.method import Method
    from tilting.select import Select


@dataclass(frozen=True)
class Twisted(Climbing):
    """Proposal N(mean + std² ∇ log twist, std²), weighed and resampled before every draw, x_T included.

    Attributes:
        particles: N.
        beta: temperature of the tilt, in the reward's units.
        share: resample below this share of N effective particles.
        final: keep the heaviest particle, or draw one by weight.
        start: draw N x_T, or copy one.
    """

    particles: int = 4
    beta: float = 0.05
    share: float = field(default=0.5, kw_only=True)
    final: Literal["weight", "sample"] = field(default="weight", kw_only=True)
    start: Start = field(default="independent", kw_only=True)
    cost = "N·T"
    density = True
    selects = True

    def _method(self, name: str, select: Select) -> Method:
        from tilting.guidance.kernel import Mean
        from tilting.method import Every, Method

        return Method(
            name, self.particles, self.start, select=select, select_when=Every(1, at_start=True), final=self.final,
            guides=(Mean(1 / self.beta, "plain", "variance"),), slope=self._estimator(),
        )  # fmt: skip


@dataclass(frozen=True)
class Tds(Twisted):
    """Twisted diffusion sampler: proposals pushed by the gradient of the twist exp(r(x0)/β), and weights that make them exact.

    Wu et al. 2023. The score-exact shift is (v/a)∇ instead of std²∇; either is right once weighted.
    """

    name = "tds"
    paper = "Wu et al. 2023"
    published: ClassVar[dict[str, Any]] = {"particles": 8, "share": 0.5, "steps": 100}

    def build(self, steps: int) -> Method:
        from tilting.select import Smc

        return self._method("tds", Smc(self.beta, self.share))


@dataclass(frozen=True)
class Das(Twisted):
    """Diffusion alignment as sampling: TDS with twist and push tempered by λ_i = min((1 + γ)^i - 1, 1), SSP resampling,
    heaviest particle.

    Kim et al. 2025 (arXiv 2501.05803). Published: T = 100, CFG 5, γ = .008, β (their α) = .005 (aesthetic) / 1e-4 (PickScore).

    Attributes:
        temper: γ; default reaches λ = 1 when 87 % of the run is done, as γ = .008 does at T = 100.
        adaptive: raise λ as far as keeps the effective sample size at share · N, instead of by γ.
    """

    temper: float | None = None
    adaptive: bool = False
    name = "das"
    paper = "Kim et al. 2025"
    published: ClassVar[dict[str, Any]] = {"particles": 16, "beta": 0.005, "temper": 0.008, "steps": 100, "cfg": 5}
    published_for: ClassVar[dict[str, dict[str, Any]]] = {"pickscore": {"beta": 1e-4}}

    def build(self, steps: int) -> Method:
        from tilting.select import Smc

        if self.adaptive and self.temper is not None:
            raise TiltingError("das.adaptive raises λ by the effective sample size: leave das.temper unset")
        temper = 2 ** (1 / max(1.0, 0.87 * steps)) - 1 if self.temper is None else self.temper
        temper = None if self.adaptive else temper
        return self._method("das", Smc(self.beta, self.share, temper=temper, adaptive=self.adaptive, scheme="ssp"))
