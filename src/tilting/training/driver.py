"""What training runs in a folder share: where one goes on, lines of numbers, a bar. Importing this does not import torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from tilting.training.folder import METRICS, TIMING, TrainingFolder

if TYPE_CHECKING:
    from tilting.training.checkpoint import Saved
    from tilting.training.processes import Engine


def enter(place: TrainingFolder[Any]) -> tuple[Engine, Saved | None]:
    """This process of a run, its trackers not begun yet, and the newest checkpoint of the folder, if there is one."""
    from tilting.training.checkpoint import read
    from tilting.training.processes import launch

    config, held = place.config, read(place.checkpoints)
    return launch(config.device, config.tracker, str(place.path), config.mapping(), held.step if held else 0), held


@contextmanager
def patient(engine: Engine) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, to be asked between steps by a loop that then saves and ends; KeyboardInterrupt is raised on
    the way out. A second one is obeyed at once. Of several processes each would stop elsewhere: there, as outside the main
    thread, nothing is changed."""
    before = signal.getsignal(signal.SIGINT)
    if (
        engine.count > 1
        or threading.current_thread() is not threading.main_thread()
        or before is not signal.default_int_handler
    ):
        yield lambda: False
        return
    pressed: list[bool] = []

    def note(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)
        os.write(2, b"\ntilting: this step is finished and saved; press again to leave at once\n")  # print may be at it

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:  # and all is saved
        raise KeyboardInterrupt


def bring(model: Any, engine: Engine) -> None:
    """Move a model to the process's device."""
    if str(engine.device) != "cpu":
        model.to(engine.device)


def record(place: TrainingFolder[Any], engine: Engine, line: Mapping[str, Any], **seconds: float) -> None:
    """A line of metrics, of timing and of the trackers, by the main process; ``seconds`` by what took them."""
    if engine.main:
        place.add(METRICS, line)
        place.add(TIMING, {"step": line["step"], **seconds})
        engine.log({k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}, line["step"])


def kl_of(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The KL of a line of numbers under the name that says what it is of: the path, its open steps, or a step."""
    return next(({name: numbers[name]} for name in ("kl", "kl_open", "kl_step") if name in numbers), {})


class Bar:
    """A bar on stderr, of training steps, with a few numbers and the time left.

    Args:
        name: of the run.
        total, step: training steps in all, and made before.
        quiet: no bar, and no line about skipped steps.
    """

    def __init__(self, name: str, total: int, step: int, quiet: bool):
        from tqdm import tqdm

        self.quiet = quiet
        self.bar = tqdm(
            total=total, initial=step, desc=name, unit="step", file=sys.stderr, disable=quiet, dynamic_ncols=True
        )  # fmt: skip

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
