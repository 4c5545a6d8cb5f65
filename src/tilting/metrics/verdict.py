"""Was the reward gamed? A run against the base model: reward up while held-out judges fall.

Every comparison is a paired t interval over prompts (95 %) of run - base; "up" is an interval above 0, "down" one below 0. A
judge is held out when no reward of the run reads its network. A fall of diversity is no fall of a judge and is said apart. One
that has no width though it is not at 0 says nothing: it is of too few, not of a sure difference. Where the estimate of a
held-out judge lies more than its standard error below 0, the sentence says that it may have fallen. Several judges share one
error by Holm's correction: where a run changes none of them, one is said to have fallen in 2.5 % of cases, however many there
are (in up to 6 % where the changes are as skewed as those of pocket's judge under CoDe).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilting.metrics.statistics import Estimate, Interval, holm

FEWEST = 4
"""Prompts (or pictures of a lone one) below which no verdict is given: the interval of two reaches 16 standard errors."""
GAMED, NARROWER, BETTER, NO_GAIN, TOO_FEW = "gamed", "less diverse", "better", "no gain", "too few to say"
"""The words of all reports; `tilting.reports.words` says what each means."""
SPREAD = ("diversity",)
"""Measures of how far pictures are apart: their fall does not say that a picture is worse."""


@dataclass(frozen=True)
class Verdict:
    """What became of a run.

    Attributes:
        word: `GAMED`, `NARROWER`, `BETTER`, `NO_GAIN` or `TOO_FEW`.
        reason: one sentence.
        reward: run - base of the reward.
        judges: run - base of every held-out judge, and of diversity, by name; their intervals are Holm's.
    """

    word: str
    reason: str
    reward: Interval
    judges: dict[str, Interval]


def too_few(prompts: Sequence[str]) -> str | None:
    """Why pictures of these prompts tell nothing; None where they are enough."""
    count = len(set(prompts))
    if count >= FEWEST or (count == 1 and len(prompts) >= FEWEST):
        return None
    few = f"{len(prompts)} picture{'s' if len(prompts) > 1 else ''} of one prompt" if count == 1 else f"{count} prompts"
    return f"{few} are too few to tell: take {FEWEST} prompts, better 20"


def _says(interval: Interval) -> bool:
    """Whether it is an interval: of a single value there is none, and one of no width away from 0 is of too few."""
    return interval.low is not None and (interval.low != interval.high or interval.mean == 0)


def _shown(interval: Interval) -> str:
    bounds = f"{interval.low:+.3g}, {interval.high:+.3g}" if _says(interval) and interval.low is not None else "no interval"
    return f"{interval.mean:+.3g} [{bounds}]"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def decide(reward: Estimate, judges: Mapping[str, Estimate]) -> Verdict:
    """The verdict and its reason.

    Args:
        reward: run - base.
        judges: the same of every held-out judge (higher is better), and of `SPREAD`, by name; may be empty.
    """
    gain, moved = reward.interval(), holm(judges)
    fallen = {name: f"{name} {_shown(value)}" for name, value in moved.items() if value.below and _says(value)}
    worse = [said for name, said in fallen.items() if name not in SPREAD]
    alike = [said for name, said in fallen.items() if name in SPREAD]
    unknown = [name for name, value in moved.items() if not _says(value)]
    if not _says(gain):
        return Verdict(
            TOO_FEW, f"the reward's difference, {_shown(gain)}, is of too few pictures to tell from chance", gain, moved
        )
    head = f"the reward {'rose' if gain.above else 'fell' if gain.below else 'did not rise beyond chance'}: {_shown(gain)}"
    if gain.above and worse:
        also = f"; pictures of a prompt are more alike: {_listed(alike)}" if alike else ""
        return Verdict(GAMED, f"{head}, while {_listed(worse)} fell{also}", gain, moved)
    held = [name for name in moved if name not in (*SPREAD, *unknown)]
    leaning = [f"{name} {_shown(moved[name])}" for name in held if judges[name].mean < -(judges[name].error or 0.0)]
    if gain.above:
        if leaning:
            tail = f"and {_listed(leaning)} may have fallen: more prompts would tell"
        elif unknown:
            tail = f"and of {_listed(unknown)} there is too little to say"
        else:
            tail = f"and no fall of {_listed(held)} was found" if held else "with no held-out judge to contradict it"
        if alike:
            return Verdict(NARROWER, f"{head}, {tail}; pictures of a prompt are more alike: {_listed(alike)}", gain, moved)
        return Verdict(TOO_FEW if unknown and not held else BETTER, f"{head}, {tail}", gain, moved)
    tail = f", and {_listed([*worse, *alike])} fell" if fallen else ""
    return Verdict(NO_GAIN, head + tail, gain, moved)
