"""Progress bar of a training: steps, a few numbers, the time left."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

from tilting.training.loop import Info

KL = ("kl", "kl_open", "kl_step")
"""Names of the KL in a line of numbers: of the path, of its open steps, of a step."""


def kl_of(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The KL of a line of numbers under the name that says what it is of: the path, its open steps, or a step."""
    return next(({name: numbers[name]} for name in KL if name in numbers), {})


def kl_name(rows: Iterable[Mapping[str, Any]]) -> str:
    """What lines of numbers call their KL."""
    names = {name for row in rows for name in row}
    return next((name for name in KL if name in names), KL[0])


class Bar:
    """A bar on stderr, of training steps, with a few numbers and the time left.

    Args:
        name: of the run.
        total, step: training steps in all, and made before.
        quiet: no bar, and no line about skipped steps.
    """

    def __init__(self, name: str, total: int, step: int, quiet: bool):
        self.quiet = quiet
        about: dict[str, Any] = {"desc": name, "unit": "step", "file": sys.stderr, "dynamic_ncols": True}
        self.bar = tqdm(total=total, initial=step, disable=quiet, **about)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, step: int, skipped: str | None, **numbers: float | None) -> None:
        """A step is made: why it was skipped, or None, and what to show of it."""
        if skipped is not None and not self.quiet:
            self.bar.write(f"tilting: step {step} is skipped: {skipped}", file=sys.stderr)
        shown = (f"{key} {value:.4g}" for key, value in numbers.items() if value is not None)
        self.bar.set_postfix_str(", ".join(shown), refresh=False)
        self.bar.update(1)


def watched(name: str, steps: Iterable[Info], total: int, progress: bool, *shown: str) -> list[dict[str, Any]]:
    """The numbers of training steps, in order, with a bar that shows some of them and the KL unless ``progress`` is False."""
    history = []
    with Bar(name, total, 0, quiet=not progress) as bar:
        for row in steps:
            history.append(row.numbers)
            bar.show(row.step, row.skipped, **{key: row.numbers.get(key) for key in shown}, **kl_of(row.numbers))
    return history
