"""Signals that end a run: Ctrl-C, and SIGTERM and SIGHUP, by which schedulers and closed terminals do the same.

A command that gets one saves what it can and leaves with 130, 143 or 129; a second one ends it at once. One that comes while
an extension module is loaded waits for its end: torch's imports numpy there and swallows what is raised, and the command would
go on, with a numpy that is broken. Torch-free.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(ENDS, signal.SIG_DFL)}
LATER = 0.02
"""Seconds after which a signal that cannot be obeyed now comes again."""
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


def _extends(frame: FrameType | None) -> bool:
    """Whether an extension module is being loaded."""
    while frame is not None and not isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
        frame = frame.f_back
    return frame is not None


def _leave(number: int, frame: FrameType | None) -> None:
    if _extends(frame):
        threading.Timer(LATER, signal.raise_signal, (number,)).start()  # handlers run in the main thread
        return
    _note(number)
    raise KeyboardInterrupt


@contextmanager
def heeded() -> Iterator[None]:
    """Within a command SIGTERM and SIGHUP are as Ctrl-C, unless they are ignored (nohup) or somebody else's."""
    _got.clear()
    mine = threading.current_thread() is threading.main_thread()
    taken = [number for number, usual in USUAL.items() if mine and signal.getsignal(number) is usual]
    for number in taken:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, USUAL[number])


@contextmanager
def patient(unit: str = "step", several: bool = False) -> Iterator[Callable[[], bool]]:
    """Whether a signal came, to be asked between steps by a loop that then saves and ends; KeyboardInterrupt is raised on the
    way out. A second one is obeyed at once.

    Args:
        unit: what is finished first, for people.
        several: there are other processes, each of which would stop elsewhere: nothing is changed then, nor outside the main
            thread, nor for signals that somebody else takes.
    """
    mine = threading.current_thread() is threading.main_thread() and not several
    usual = {number: signal.getsignal(number) for number in USUAL}
    taken = [number for number, handler in usual.items() if mine and handler in (_leave, signal.default_int_handler)]
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
