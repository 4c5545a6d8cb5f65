"""What the presets share: the protocol, and settings that scale with the length of a run. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from tilting.errors import TiltingError

if TYPE_CHECKING:  # settings are read and checked without torch; parts are imported when they are built
    from tilting.guidance.slope import Estimator
    from tilting.method import Every, Method
    from tilting.select import Select

Start = Literal["independent", "copy"]
Rule = Literal["cfg", "unit", "plain"]
Window = tuple[float, float]


class Preset(Protocol):
    """Settings of a published method, a frozen dataclass whose defaults are the model pocket's.

    Attributes:
        name: of the preset.
        paper: where it comes from.
        cost: denoiser evaluations per image, as a formula.
        selects: whether it selects between draws, and so needs eta > 0.
        climbs: whether it needs the reward's own gradient.
        density: whether its proposal has a tractable density, so that particles could be weighed exactly.
        published: what the paper or its code used, by setting, for the models named in it.
        published_for: what it used instead with a reward, by its name, or from a picture ("image").
        usual_eta: unless told; 0 for one that looks for a better x_T, which a chain of eta 1 from pure noise forgets.
    """

    published: ClassVar[dict[str, Any]]
    published_for: ClassVar[dict[str, dict[str, Any]]]

    @property
    def usual_eta(self) -> float: ...

    def variants(self, prompt: str) -> list[str]:
        """What the streams are told: one text for all of them, or one for each."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def paper(self) -> str: ...

    @property
    def cost(self) -> str: ...

    @property
    def density(self) -> bool: ...

    @property
    def selects(self) -> bool: ...

    @property
    def climbs(self) -> bool: ...

    def build(self, steps: int) -> Method:
        """The method for a run of that many steps."""
        ...


class Usual:
    """What most presets have in common."""

    usual_eta: float = 1.0
    published: ClassVar[dict[str, Any]]
    published_for: ClassVar[dict[str, dict[str, Any]]] = {}

    @classmethod
    def of_paper(cls, *cases: str) -> dict[str, Any]:
        """``published``, and over it what was used in these cases of ``published_for``; other cases change nothing."""
        return {**cls.published, **{k: v for case in cases for k, v in cls.published_for.get(case, {}).items()}}

    @classmethod
    def as_published(cls, *cases: str, **settings: Any) -> Any:
        """The preset with what its paper or code used, and ``settings`` over that; its steps and cfg are the caller's.

        Args:
            cases: keys of ``published_for``: a reward that had settings of its own, such as "pickscore", or "image".
            settings: the preset's own.

        Raises:
            TiltingError: for a case that the paper has no settings for.
        """
        for case in cases:
            if case not in cls.published_for:
                known = f": it has {' and '.join(cls.published_for)}" if cls.published_for else ""
                raise TiltingError(f"{cls.__name__} has no published settings of its own for {case!r}{known}")
        own = cls.__dataclass_fields__  # type: ignore[attr-defined]
        return cls(**{**{name: value for name, value in cls.of_paper(*cases).items() if name in own}, **settings})

    def variants(self, prompt: str) -> list[str]:
        return [prompt]


class Unguided(Usual):
    """What presets have that ask a reward for values only; one that selects between draws says so."""

    selects, climbs, density = False, False, True
    published: ClassVar[dict[str, Any]] = {}


@dataclass(frozen=True, kw_only=True)
class Climbing(Usual):
    """What every preset has that follows the reward's gradient.

    Attributes:
        probes: N' antithetic pairs of zero-order gradients, for black-box rewards; None back-propagates.
        sigma: size of a probe relative to the noise level (the code of the CoDeX thesis has 1.0 for every level).
    """

    probes: int | None = None
    sigma: float = 0.1

    @property
    def climbs(self) -> bool:
        return self.probes is None

    def _estimator(self, **options: Any) -> Estimator:
        """How gradients are found: through the network, or by zero-order probes."""
        from tilting.guidance.slope import Estimator

        return Estimator(probes=self.probes, sigma=self.sigma, **options)


def block_of(block: int | None, steps: int, usual: int) -> int:
    """A block length in steps: the given one, else the usual one clamped so that it fires in a short run."""
    return block if block is not None else max(1, min(usual, (steps - 1) // 2))


def selection(tau: float | None, tau_end: float | None = None, beams: int = 1) -> Select:
    """Greedy without a temperature (or at 0), multinomial with one."""
    from tilting.select import Greedy, Multinomial

    if not tau and tau_end is not None:
        raise TiltingError("tau_end is the end of a temperature that begins at tau: set tau as well")
    if tau and beams > 1:
        raise TiltingError("beams keeps the best few and tau draws by chance: set one of them")

    return Greedy(beams) if tau is None or tau == 0 else Multinomial(tau, tau_end)


def guide_gate(window: Window) -> Every:
    """Every step inside a window of t/T, x_T included."""
    from tilting.method import Every

    return Every(1, window, at_start=True)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices."""
    if value not in choices:
        raise TiltingError(f"{name} is {' or '.join(choices)}, not {value!r}")
