"""Signals that end a run: Ctrl-C, and SIGTERM and SIGHUP, by which schedulers and closed terminals do the same.

A command that gets one saves what it can and leaves with 130, 143 or 129; a second one ends it at once. Torch-free.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_got: list[int] = []


def exit_code() -> int:
    """128 and the signal that ended the command: 130 for Ctrl-C."""
    return 128 + (_got[0] if _got else signal.SIGINT)


def _note(number: int) -> None:
    """Remember it, and let the next one end the process."""
    _got.append(number)
    for other in ENDS:
        if signal.getsignal(other) is not signal.SIG_IGN:
            signal.signal(other, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    _note(number)
    raise KeyboardInterrupt


@contextmanager
def heeded() -> Iterator[None]:
    """Within a command SIGTERM and SIGHUP are as Ctrl-C, unless they are ignored (nohup) or somebody else's."""
    _got.clear()
    mine = threading.current_thread() is threading.main_thread()
    taken = [number for number in ENDS if mine and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def patient(unit: str = "step", several: bool = False) -> Iterator[Callable[[], bool]]:
    """Whether a signal came, to be asked between steps by a loop that then saves and ends; KeyboardInterrupt is raised on the
    way out. A second one is obeyed at once.

    Args:
        unit: what is finished first, for people.
        several: there are other processes, each of which would stop elsewhere: nothing is changed then, nor outside the main
            thread, nor for signals that somebody else takes.
    """
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(ENDS, _leave)}
    mine = threading.current_thread() is threading.main_thread() and not several
    taken = [number for number, handler in usual.items() if mine and signal.getsignal(number) is handler]
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        _note(number)
        again = "press again to leave at once" if number == signal.SIGINT else "a second signal ends it at once"
        os.write(2, f"\ntilting: this {unit} is finished and saved; {again}\n".encode())  # print may be at it

    for number in taken:
        signal.signal(number, note)
    try:
        yield lambda: bool(pressed)
    finally:
        for number in taken:
            if number == signal.SIGINT or not pressed:
                signal.signal(number, usual[number])
    if pressed:  # and all is saved
        raise KeyboardInterrupt
