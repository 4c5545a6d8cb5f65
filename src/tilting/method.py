"""A method: a composition of parts, and the gates that decide at which steps each part acts.

A `Method` is a value: `tilting.presets` has the published ones, and users may compose others from the same parts.
`tilting.cost.cost` counts what a run of it costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from tilting.guidance.kernel import Guide
from tilting.guidance.value_and_grad import Estimator, GradientContext, Rule, ValueAndGrad
from tilting.select import Select
from tilting.types import TiltingError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Every:
    """A gate: fires after every ``block`` steps, while t/T is inside a window.

    Attributes:
        block: steps between two firings; steps are counted from 1, so that a gate fires neither at x_T nor at x_0.
        window: (high, low) bounds of t/T, the fraction of steps left.
        at_start: also fire at x_T, as guides do.
        begin: t/T of the run's first point, below 1 if it starts from a noised picture (SDEdit).
    """

    block: int = 1
    window: tuple[float, float] = (1.0, 0.0)
    at_start: bool = False
    begin: float = 1.0

    def __post_init__(self) -> None:
        if self.block < 1:
            raise TiltingError(f"a block must be at least 1 step, not {self.block}")
        if not 1 >= self.window[0] >= self.window[1] >= 0:
            raise TiltingError(f"a window is (high, low) of t/T, each from 0 to 1, not {self.window}")

    def __call__(self, draws: int, steps: int) -> bool:
        high, low = self.window
        first, left = 0 if self.at_start else 1, self.begin * (1 - draws / steps)
        return first <= draws < steps and draws % self.block == 0 and low - 1e-9 <= left <= high + 1e-9

    def count(self, steps: int) -> int:
        """How often it fires in a run of ``steps`` steps."""
        return sum(self(i, steps) for i in range(steps))


ALWAYS = Every(1, at_start=True)


class Correct(Protocol):
    """A move of the latents x_t at time t, such as `tilting.guidance.gradient.RewardGradient`."""

    @property
    def estimator(self) -> Estimator: ...

    @property
    def rule(self) -> Rule: ...

    def __call__(self, context: GradientContext) -> tuple[Tensor, ValueAndGrad]: ...


class Engine(Protocol):
    """An alternative to the loop of `tilting.sample.sample`; yields (State, Info) too.

    Attributes:
        needs_reward_gradient: whether it needs the reward's own gradient.
        stochastic: whether it relies on the noise of the steps, and so needs eta > 0.
        may_cost_less: whether its cost depends on the values it sees; `tilting.cost` then counts an upper bound.
        parallel: whether processes may share its rows; default True.
    """

    @property
    def needs_reward_gradient(self) -> bool: ...

    @property
    def stochastic(self) -> bool: ...

    @property
    def may_cost_less(self) -> bool: ...

    def ticks(self, steps: int) -> int:
        """How often it yields."""
        ...

    def __call__(self, problem: Any, method: Method, state: Any) -> Any: ...


class Begin(Protocol):
    """A move of the particles at x_T, before the first step."""

    def __call__(self, problem: Any, select: Select | None, state: Any, look: Callable[[Any, int], Any]) -> Any:
        """The state to go on from.

        Args:
            problem: the chain's `tilting.state.Problem`.
            select: the method's selection, whose weights this move may have to correct.
            state: at x_T.
            look: (state, number of the evaluation) -> the state with prediction, value and gradient at its x.
        """
        ...


Start = Literal["independent", "copy"]
CorrectOn = Literal["all", "medoid", "mean", "winner"]
Final = Literal["reward", "weight", "sample", "first", "all"]
Interpolant = Literal["own", "vp"]


@dataclass(frozen=True)
class Method:
    """A composition of parts that the loop runs: what `tilting.presets` names.

    Attributes:
        name: the preset it came from.
        particles: n per image.
        start: "independent" draws n x_T per image; "copy" repeats one.
        counts: schedule of n: the run is cut into as many equal parts, and n changes at selections; empty keeps ``particles``.
        correct, correct_when: a move of x_t, and its gate.
        correct_on: which particles have their gradient computed: "all"; "medoid" or "mean" of ``clusters`` k-means clusters,
            shared by the members; "winner", the particle just selected (at the selection's gate, inside the window).
        clusters: k; 0 takes half the particles.
        select, select_when: a selection rule, and its gate.
        guides, guide_when: changes of the kernel of a step, applied in order, and their gate.
        estimator: estimates the gradient at x_t for guides that need one.
        repeat, repeat_when: K, how often a step is made (renoised to t in between), and its gate.
        final: which particle is returned: "reward", the highest reward of the decoded image; "weight", the largest weight;
            "sample", one drawn by weight; "first" (needs no reward); "all" returns every particle.
        engine: drives the chain instead of the loop, or None.
        spread: std of x_T; other than 1 if the target distribution has another std there.
        begin: a move of the particles at x_T.
        interpolant: the time grid of a flow model: its "own", or that of the variance-preserving process ("vp").
    """

    name: str
    particles: int = 1
    start: Start = "independent"
    counts: tuple[int, ...] = ()
    correct: Correct | None = None
    correct_when: Every = Every(1)
    correct_on: CorrectOn = "all"
    clusters: int = 0
    select: Select | None = None
    select_when: Every = Every(1)
    guides: tuple[Guide, ...] = ()
    guide_when: Every = ALWAYS
    estimator: Estimator = field(default=Estimator())
    repeat: int = 1
    repeat_when: Every = ALWAYS
    final: Final = "first"
    engine: Engine | None = None
    spread: float = 1.0
    begin: Begin | None = None
    interpolant: Interpolant = "own"

    def begun_at(self, begin: float) -> Method:
        """The method for a run that starts at t/T = begin (SDEdit): windows keep their t/T."""
        gates = {"correct_when": self.correct_when, "select_when": self.select_when}
        gates |= {"guide_when": self.guide_when, "repeat_when": self.repeat_when}
        return replace(self, **{name: replace(gate, begin=begin) for name, gate in gates.items()})

    @property
    def needs_value_and_grad(self) -> bool:
        """Whether a guide needs the gradient at x_t."""
        return any(guide.needs_value_and_grad for guide in self.guides)

    @property
    def needs_reward(self) -> bool:
        chosen = self.select is not None and self.select.needs_reward
        guided = any(getattr(guide, "needs_reward", True) for guide in self.guides)
        return bool(self.correct or chosen or guided or self.engine or self.begin or self.final == "reward")

    @property
    def needs_reward_gradient(self) -> bool:
        """Whether the reward itself must be differentiable."""
        estimators = [self.correct.estimator] if self.correct else []
        estimators += [self.estimator] if self.needs_value_and_grad or self.begin is not None else []
        estimators += [guide.estimator for guide in self.guides if guide.estimator is not None]
        return not all(e.black_box for e in estimators) or (self.engine is not None and self.engine.needs_reward_gradient)

    @property
    def needs_correction(self) -> bool:
        """Whether a part scales its gradient by the CFG correction."""
        return any(part.rule == "cfg" for part in (self.correct, *self.guides) if part is not None)

    @property
    def importance_weighted(self) -> bool:
        """Whether particles carry importance weights, which correct for guided proposals."""
        return self.select is not None and self.select.importance_weighted

    @property
    def scores_finals(self) -> bool:
        """Whether the finished particles are decoded and scored to choose or weigh them."""
        weighed = self.select is not None and self.select.importance_weighted and self.select.needs_reward
        return self.final == "reward" or weighed

    def particles_at(self, draws: int, steps: int) -> int:
        """n after a selection at step ``draws`` of ``steps``."""
        return self.counts[min(draws * len(self.counts) // steps, len(self.counts) - 1)] if self.counts else self.particles

    def choices(self, steps: int) -> int:
        """How many selections a run of ``steps`` steps makes. There is none after the last step; an engine that draws children
        selects after every other step."""
        if self.engine is not None:
            return steps - 1 if self.engine.stochastic else 0
        return 0 if self.select is None else self.select_when.count(steps)

    @property
    def without_choices(self) -> str:
        """The method that it is equivalent to in a run without a selection."""
        return "best-of-N" if self.particles > 1 and self.final in ("reward", "weight") else "base"

    def groups(self, n: int) -> int:
        """How many of n particles have their own gradient computed in a correction."""
        return n if self.correct_on == "all" else min(n, self.clusters or max(1, n // 2))


def check(method: Method, steps: int, eta: float, cfg: float, has_gradient: bool | None) -> None:
    """Refuse combinations that cannot work. ``has_gradient`` is of the reward, None without one. Raises TiltingError."""
    for name, known in (("start", Start), ("correct_on", CorrectOn), ("final", Final), ("interpolant", Interpolant)):
        if (value := getattr(method, name)) not in get_args(known):
            raise TiltingError(f"{name} of {method.name} must be {' or '.join(map(repr, get_args(known)))}, not {value!r}")
    for n in (method.particles, *method.counts):
        if n < 1:
            raise TiltingError(f"particles must be at least 1, not {n}")
    if len(method.counts) > steps:
        raise TiltingError(f"{method.name}'s schedule of {len(method.counts)} parts does not fit a run of {steps} steps")
    if method.counts and method.select is not None:
        seen = {i * len(method.counts) // steps for i in range(steps) if i == 0 or method.select_when(i, steps)}
        if len(seen) < len(method.counts):
            parts = f"{method.name}'s schedule of {len(method.counts)} parts"
            most = steps // len(method.counts)
            raise TiltingError(f"{parts} has selections in {len(seen)} of them alone: take blocks of at most {most} steps")
    if method.repeat < 1:
        raise TiltingError(f"repeats must be at least 1, not {method.repeat}")
    if not 0 <= eta <= 1:
        raise TiltingError(f"eta must be between 0 and 1, not {eta}")
    if has_gradient is None and method.needs_reward:
        raise TiltingError(f"method {method.name} needs a reward")
    many = max((method.particles, *method.counts)) > 1
    if eta == 0 and many and method.select is not None:
        raise TiltingError(f"{method.name} selects in blocks, and at eta 0 the copies stay identical: use eta > 0 (1 is usual)")
    if eta == 0 and method.engine is not None and method.engine.stochastic:
        raise TiltingError(f"{method.name} draws children of one parent, which eta 0 makes identical: use eta > 0 (1 is usual)")
    if eta == 0 and many and method.start == "copy":
        raise TiltingError("copied starts at eta 0 give identical particles: use eta > 0 or independent starts")
    if method.needs_reward_gradient and has_gradient is False:
        probes = f"set {method.name}.probes for zero-order gradients"
        raise TiltingError(f"{method.name} needs a differentiable reward: {probes}, or use code or bon")
    if cfg == 1 and method.needs_correction:
        raise TiltingError(f"{method.name} scales its gradient by the CFG correction, which cfg 1 does not have: use cfg > 1")
    if method.importance_weighted and (method.repeat > 1 or method.correct is not None):
        raise TiltingError(
            f"{method.name} repeats or corrects steps, which leaves no proposal density to weigh by: select otherwise"
        )
    if method.correct_on == "winner" and not (method.select is not None and method.select.one_winner):
        raise TiltingError("a gradient on the winner needs a greedy selection of one")
