"""Was the reward gamed? A run against the base model: reward up while held-out judges or diversity fall.

Every comparison is a paired t interval over prompts (95 %) of run - base; "up" is an interval above 0, "down" one below 0. A
judge is held out when no reward of the run reads its network. Several judges share one error by Holm's correction: where a run
changes none of them, one is said to have fallen in 2.5 % of cases, however many there are (in up to 6 % where the changes are
as skewed as those of pocket's judge under CoDe).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilting.metrics.statistics import Estimate, Interval, holm


@dataclass(frozen=True)
class Verdict:
    """What became of a run.

    Attributes:
        word: "gamed", "better" or "no gain".
        reason: one sentence.
        reward: run - base of the reward.
        judges: run - base of every held-out judge, by name; their intervals are Holm's.
    """

    word: str
    reason: str
    reward: Interval
    judges: dict[str, Interval]


def _shown(interval: Interval) -> str:
    bounds = "no interval" if interval.low is None else f"{interval.low:+.3g}, {interval.high:+.3g}"
    return f"{interval.mean:+.3g} [{bounds}]"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def decide(reward: Estimate, judges: Mapping[str, Estimate]) -> Verdict:
    """The verdict and its reason.

    Args:
        reward: run - base.
        judges: the same of every held-out judge (higher is better), by name; may be empty.
    """
    gain, moved = reward.interval(), holm(judges)
    fallen = [f"{name} {_shown(value)}" for name, value in moved.items() if value.below]
    head = f"the reward {'rose' if gain.above else 'fell' if gain.below else 'did not rise beyond chance'}: {_shown(gain)}"
    if gain.above and fallen:
        return Verdict("gamed", f"{head}, while {_listed(fallen)} fell", gain, moved)
    if gain.above:
        tail = f"and no fall of {_listed(list(moved))} was found" if moved else "with no held-out judge to contradict it"
        return Verdict("better", f"{head}, {tail}", gain, moved)
    tail = f", and {_listed(fallen)} fell" if fallen else ""
    return Verdict("no gain", head + tail, gain, moved)
