"""What recipes keep: results in files of the run's folder, and loaded models and rewards in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tilting.disk import write_atomically
from tilting.rewards.spec import build, parse_specs


def cached(file: Path, made: Any, make: Callable[[], Any]) -> Any:
    """What a file holds if it was made from the same plain data; else it is made and written."""
    if file.is_file():
        before = json.loads(file.read_bytes())
        if before["made"] == made:
            return before["held"]
    result = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps({"made": made, "held": result}, indent=1) + "\n").encode())
    return result


class Rewarded(Protocol):
    """A configuration with specs of rewards."""

    @property
    def reward(self) -> tuple[str, ...]: ...


Config = TypeVar("Config", bound=Rewarded)
Parts = TypeVar("Parts")


class PartsCache(Generic[Config, Parts]):
    """Loads the parts of the first run (model, judge), and for every other one what differs: its reward.

    Args:
        load: the parts of a run, a NamedTuple with a reward.
        own: scores that are no rewards of `tilting rewards`, by name.
    """

    def __init__(self, load: Callable[[Config], Parts], own: Mapping[str, Any] | None = None) -> None:
        self.load = load
        self.shared: Any = None
        self.rewards: dict[tuple[str, ...], Any] = {(name,): score for name, score in (own or {}).items()}

    def parts(self, config: Config) -> Parts:
        """What a run of this config needs. Raises TiltingError for a reward that cannot be built."""
        if self.shared is None:
            self.shared = self.load(config)
            self.rewards[config.reward] = self.shared.reward
        return self.shared._replace(reward=self.reward(*config.reward))

    def reward(self, *specs: str) -> Any:
        """The reward of these specs, or what is called by this name of one's own."""
        if specs not in self.rewards:
            self.rewards[specs] = build(parse_specs(specs))
        return self.rewards[specs]
