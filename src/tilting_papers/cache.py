"""Caches of recipes: results in files of the run's folder, and loaded models and rewards in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tilting.disk import write_atomically
from tilting.rewards.spec import build, parse_specs
from tilting.runs.files import parsed
from tilting_papers.parts import odd


def cached(file: Path, made: Any, make: Callable[[], Any] | None, shape: Any = object) -> Any:
    """The result stored in a file, if it was made from the same inputs ``made``; else compute and store it, or None where it
    cannot be computed here. Raises TiltingError: the file is corrupt, or its result is not of this shape (`parts.odd`)."""
    if file.is_file():
        before = parsed(file, lambda before: odd(before, {"made": object, "held": shape}))
        if before["made"] == made:
            return before["held"]
    if make is None:
        return None
    result = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps({"made": made, "held": result}, indent=1) + "\n").encode())
    return result


class Rewarded(Protocol):
    """A config with reward specs."""

    @property
    def reward(self) -> tuple[str, ...]: ...


Config = TypeVar("Config", bound=Rewarded)
Parts = TypeVar("Parts")


class PartsCache(Generic[Config, Parts]):
    """Loads model and judge once for all runs, and each reward once.

    Args:
        load: loads the parts of a run, a NamedTuple with a reward.
        own: further scores by name, which are not in `tilting rewards`.
    """

    def __init__(self, load: Callable[[Config], Parts], own: Mapping[str, Any] | None = None) -> None:
        self.load = load
        self.shared: Any = None
        self.rewards: dict[tuple[str, ...], Any] = {(name,): score for name, score in (own or {}).items()}

    def parts(self, config: Config) -> Parts:
        """The parts of a run. Raises TiltingError for a reward that cannot be built."""
        if self.shared is None:
            self.shared = self.load(config)
            self.rewards[config.reward] = self.shared.reward
        return self.shared._replace(reward=self.reward(*config.reward))

    def reward(self, *specs: str) -> Any:
        """The reward of these specs, or the score of this name in ``own``."""
        if specs not in self.rewards:
            self.rewards[specs] = build(parse_specs(specs))
        return self.rewards[specs]
