"""Presets that choose among particles and need no gradient: base, sdedit, bon, code, svdd, smc, fk, rbf, prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from tilting.declare import Doc
from tilting.engines.budget import Budget
from tilting.errors import TiltingError
from tilting.method import Every, Method
from tilting.presets.common import METHODS, Beta, EssThreshold, Particles, Preset, Start
from tilting.select import Greedy, Multinomial, Select, Smc


def block_of(block: int | None, steps: int, usual: int) -> int:
    """A block length in steps: the given one, else the usual one clamped so that it fires in a short run."""
    return block if block is not None else max(1, min(usual, (steps - 1) // 2))


def selection(tau: float | None, tau_end: float | None = None, beams: int = 1) -> Select:
    """Greedy without a temperature (or at 0), multinomial with one."""
    if not tau and tau_end is not None:
        raise TiltingError("tau_end is the end of a temperature that begins at tau: set tau as well")
    if tau and beams > 1:
        raise TiltingError("beams keeps the best few and tau draws by chance: set one of them")
    return Multinomial(tau, tau_end) if tau else Greedy(beams)


@METHODS.register
@dataclass(frozen=True)
class Base(Preset):
    """The model by itself: one particle, no reward needed.

        x_T ~ N(0, I)
        for t = T ... 1:
            x_{t-1} ~ N(mean(x_t, x0(x_t)), std²)        std ∝ eta: 0 is DDIM, 1 is DDPM
        return x_0

    Ho et al. 2020 (DDPM); Song et al. 2021 (DDIM).
    """

    name = "base"
    paper = "Ho et al. 2020; Song et al. 2021"

    def build(self, steps: int) -> Method:
        return Method(self.name)


@METHODS.register
@dataclass(frozen=True)
class SDEdit(Base):
    """The model started from a noised picture (--image, --strength), which composes with every other method.

        c = encode(image);  s = strength · T
        x_s = α_s c + σ_s ε,  ε ~ N(0, I)
        for t = s ... 1:  x_{t-1} ~ N(mean(x_t, x0(x_t)), std²)
        return x_0

    Meng et al. 2022. The reference is encoded, noised to the strength's share of the run, and the rest of the run is made.
    """

    name = "sdedit"
    paper = "Meng et al. 2022"
    needs_picture = True
    published: ClassVar = {"steps": 100, "strength": 0.6}


@METHODS.register
@dataclass(frozen=True)
class BestOfN(Preset):
    """N full runs, the one of the highest reward kept.

        for i = 1 ... particles:  x_0^i <- the base model
        return x_0^i of the highest r(D(x_0^i))

    Re-ranking (Clark et al. 2024, App. A.3).
    """

    particles: Particles = 4
    start: Start = "independent"
    name = "bon"
    paper = "Clark et al. 2024, App. A.3"
    published: ClassVar = {"particles": 16}

    def build(self, steps: int) -> Method:
        return Method("bon", self.particles, self.start, final="reward")


@METHODS.register
@dataclass(frozen=True)
class CoDe(Preset):
    """CoDe(N, B): every B steps rank the particles by r(D(x0)) and copy the winner; the last step ranks real samples.

        x_T^i ~ N(0, I),  i = 1 ... particles
        for t = T ... 1:
            if block draws were made since the last selection:
                v^i = r(D(x0(x_t^i)))
                x_t^i <- the best of x_t (the best `beams`, copied equally often; with tau, drawn with P ∝ exp(v / tau))
            x_{t-1}^i ~ N(mean(x_t^i, x0(x_t^i)), std²)
        return x_0^i of the highest r(D(x_0^i))

    Singh et al. 2025, Alg. 1; Alg. 6 of the CoDeX thesis. Published: SD 1.5, N = 4 or 40, B = 5, T = 500 DDPM, CFG 5
    (7.5 in the code). With ``beams`` it is latent beam search (Oshima et al. 2025).
    """

    particles: Particles = 4
    block: Annotated[int | None, Ge(1), Doc("B; default 5, less in short runs.")] = None
    beams: Annotated[int, Ge(1), Doc("how many particles survive a selection.")] = 1
    tau: Annotated[
        float | None, Ge(0), Doc("temperature of multinomial selection, in the reward's units; None selects greedily.")
    ] = None
    start: Annotated[Start, Doc("the published code copies one x_T, CoDeX draws N.")] = "independent"
    name = "code"
    paper = "Singh et al. 2025"
    selects, density = True, False
    published: ClassVar = {"particles": 4, "block": 5, "start": "copy", "steps": 500, "cfg": 5}
    published_for: ClassVar = {"image": {"steps": 100}}

    def build(self, steps: int) -> Method:
        select, gate = selection(self.tau, beams=self.beams), Every(block_of(self.block, steps, 5))
        return Method("code", self.particles, self.start, select=select, select_when=gate, final="reward")


@METHODS.register
@dataclass(frozen=True)
class Svdd(Preset):
    """SVDD (posterior mean): M children at every step, one of them kept by its value, all others forgotten.

        x_T ~ N(0, I)
        for t = T ... 1:
            x_{t-1}^i ~ N(mean(x_t, x0(x_t)), std²),  i = 1 ... particles
            v^i = r(D(x0(x_{t-1}^i)))
            x_{t-1} <- the child of the highest v (with tau, one drawn with P ∝ exp(v / tau))
        return x_0

    Li et al. 2024. On one image it is CoDe(B = 1) but for the last step, where the real samples are not ranked.
    """

    particles: Annotated[int, Ge(1), Doc("M, children per step, of one parent.")] = 4
    tau: Annotated[float | None, Ge(0), Doc("temperature of the softmax that draws the child; None keeps the best.")] = None
    name = "svdd"
    paper = "Li et al. 2024"
    selects, density = True, False
    published: ClassVar = {"particles": 20, "tau": None}

    def build(self, steps: int) -> Method:
        select = Multinomial(self.tau, shared=True) if self.tau else Greedy()
        return Method("svdd", self.particles, "copy", select=select, select_when=Every(1), final="first")


@METHODS.register
@dataclass(frozen=True)
class SmcTilt(Preset):
    """Sequential Monte Carlo towards p ∝ p_pre exp(r/β) with the base kernel as proposal; returns the heaviest particle.

        x_T^i ~ N(0, I),  w^i = 1,  v_before^i = 0
        for t = T ... 1:
            if block draws were made since the last weighting:
                v^i = r(D(x0(x_t^i)));  w^i <- w^i exp((v^i - v_before^i) / beta);  v_before^i = v^i
                if ESS(w) < ess_threshold · particles:  x_t <- resample(x_t, w) by scheme;  w <- 1
            x_{t-1}^i ~ N(mean(x_t^i, x0(x_t^i)), std²)
        w^i <- w^i exp((r(D(x_0^i)) - v_before^i) / beta)
        return x_0^i of the largest w^i

    Exact for the tilt of the same chain as N grows (the gradient-free case of TDS, Wu et al. 2023).
    """

    particles: Particles = 4
    beta: Beta = 0.05
    block: Annotated[int | None, Ge(1), Doc("draws between weightings; default 5, less in short runs.")] = None
    ess_threshold: EssThreshold = 0.5
    scheme: Annotated[Literal["systematic", "ssp", "multinomial"], Doc("how particles are resampled.")] = "systematic"
    start: Start = "independent"
    name = "smc"
    paper = "Wu et al. 2023"
    selects = True

    def build(self, steps: int) -> Method:
        select, gate = Smc(self.beta, self.ess_threshold, scheme=self.scheme), Every(block_of(self.block, steps, 5))
        return Method("smc", self.particles, self.start, select=select, select_when=gate, final="weight")


@METHODS.register
@dataclass(frozen=True)
class FkSteering(Preset):
    """FK steering: particles resampled by a potential of the rewards seen so far; the one of highest reward is returned.

        x_T^i ~ N(0, I),  w^i = 1
        for t = T ... 1:
            if block draws were made since the last resampling:
                v^i = r(D(x0(x_t^i)))
                w^i <- w^i G(v^i and those before)
                if ESS(w) < ess_threshold · particles:  x_t <- resample(x_t, w);  w <- 1
            x_{t-1}^i ~ N(mean(x_t^i, x0(x_t^i)), std²)
        return x_0^i of the highest r(D(x_0^i))

    Singhal et al. 2025. Potentials G: exp(λ (r_t - r_before)), exp(λ max r) or exp(λ Σ r); with the last one, which makes their
    product exp(λ r(x_0)), the weighted particles are exact for the tilt of the chain.
    """

    particles: Particles = 4
    strength: Annotated[float, Doc("λ = 1 / β.")] = 20.0
    potential: Annotated[
        Literal["difference", "max", "sum"], Doc("the potential: differences of rewards, or their maximum or sum so far.")
    ] = "max"
    block: Annotated[int | None, Ge(1), Doc("draws between resamplings; default T / 5 (every 20 of 100 steps).")] = None
    ess_threshold: EssThreshold = 1.0
    start: Start = "independent"
    name = "fk"
    paper = "Singhal et al. 2025"
    selects = True
    published: ClassVar = {"particles": 4, "strength": 10, "potential": "max", "block": 20, "steps": 100}

    def build(self, steps: int) -> Method:
        if not self.strength > 0:
            raise TiltingError(f"fk.strength must be above 0, not {self.strength}")
        select = Smc(1 / self.strength, self.ess_threshold, self.potential, scheme="multinomial")
        gate = Every(max(1, steps // 5) if self.block is None else self.block)
        return Method("fk", self.particles, self.start, select=select, select_when=gate, final="reward")


@METHODS.register
@dataclass(frozen=True)
class Rollover(Preset):
    """Rollover budget forcing: children are drawn until one beats its parent; the budget saved rolls over to later steps.

        x ~ N(0, I);  v = r(D(x0(x)));  left = 0
        for t = T ... 2:
            left <- left + particles
            repeat:  x' ~ N(mean(x, x0(x)), std²);  v' = r(D(x0(x')));  left <- left - 1
            until v' > v or left = 0
            x, v <- the best child and its value
        return x_0 ~ N(mean(x, x0(x)), std²)

    Kim et al. 2025 (arXiv 2503.19385). One particle; the cost is the most that it can be. The paper samples a flow model on the
    variance-preserving interpolant, whose steps at eta 1 are the flow's own at other times (``interpolant``). Its code begins
    from the best of 25 x_T, and a child has to beat the best value of all steps so far.
    """

    particles: Annotated[int, Ge(1), Doc("N, the mean number of children per step.")] = 4
    interpolant: Annotated[
        Literal["own", "vp"], Doc('times of a flow model: its "own", or those of the variance-preserving process.')
    ] = "own"
    name = "rbf"
    paper = "Kim et al. 2025b"
    selects, density = True, False
    published: ClassVar = {"particles": 50, "interpolant": "vp", "steps": 10}

    def build(self, steps: int) -> Method:
        return Method("rbf", 1, engine=Budget(self.particles), interpolant=self.interpolant)


TEMPLATES = "{};{}, highly detailed;{}, simple flat drawing;a beautiful {};{} on a white background"


@METHODS.register
@dataclass(frozen=True)
class Prompting(Preset):
    """Prompt search: one run per template, the picture of highest reward *for the plain prompt* kept.

        for template i:  x_0^i <- the base model, told template_i(prompt)
        return x_0^i of the highest r(D(x_0^i), prompt)

    Prompt engineering, Clark et al. 2024, App. A.3.
    """

    templates: Annotated[
        str, Doc("separated by semicolons; {} is the prompt (its article dropped where another word stands before it).")
    ] = TEMPLATES
    name = "prompt"
    paper = "Clark et al. 2024, App. A.3"

    def variants(self, prompt: str) -> list[str]:
        """The prompt in each template."""
        bare = prompt.split(" ", 1)[1] if prompt.split(" ", 1)[0] in ("a", "an", "the") and " " in prompt else prompt
        return [
            template.replace("{}", bare if template.split("{}")[0].strip() in ("a beautiful", "a", "an") else prompt)
            for template in self._templates()
        ]

    def _templates(self) -> list[str]:
        given = [template.strip() for template in self.templates.split(";") if template.strip()]
        bad = [template for template in given if "{}" not in template]
        if bad or not given:
            raise TiltingError(f"a prompt template must contain {{}}, not {(bad or [''])[0]!r}")
        return given

    def build(self, steps: int) -> Method:
        return Method("prompt", len(self._templates()), final="reward")
