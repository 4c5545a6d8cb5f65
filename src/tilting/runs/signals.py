"""Signals that end a run: Ctrl-C (SIGINT), and SIGTERM and SIGHUP, which schedulers and closed terminals send.

The first one raises KeyboardInterrupt, so that a command saves its state and exits with 130, 143 or 129; a second one kills it.
A signal that arrives while an extension module is being imported is postponed: torch imports numpy in C and swallows what is
raised there, and the command would go on with a broken numpy. Torch-free.
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

TERMINATING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
DEFAULT_HANDLERS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(TERMINATING, signal.SIG_DFL)}
POSTPONE = 0.02
"""Seconds after which a postponed signal is raised again."""
_received: list[int] = []


def exit_code() -> int:
    """128 + the number of the signal that ended the command: 130 for Ctrl-C."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def _record(number: int) -> None:
    """Record a signal, and let the next one kill the process."""
    _received.append(number)
    for other in TERMINATING:
        if signal.getsignal(other) is not signal.SIG_IGN:
            signal.signal(other, signal.SIG_DFL)


def _importing_extension(frame: FrameType | None) -> bool:
    """Whether an extension module is being imported."""
    while frame is not None and not isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
        frame = frame.f_back
    return frame is not None


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _importing_extension(frame):
        threading.Timer(POSTPONE, signal.raise_signal, (number,)).start()  # handlers run in the main thread
        return
    _record(number)
    raise KeyboardInterrupt


@contextmanager
def signals_handled() -> Iterator[None]:
    """Make SIGTERM and SIGHUP act as Ctrl-C within the block, unless they are ignored (nohup) or have another handler."""
    _received.clear()
    main = threading.current_thread() is threading.main_thread()
    taken = [number for number, default in DEFAULT_HANDLERS.items() if main and signal.getsignal(number) is default]
    for number in taken:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, DEFAULT_HANDLERS[number])


@contextmanager
def deferred_interrupt(unit: str = "step", several: bool = False) -> Iterator[Callable[[], bool]]:
    """Defer interrupts to the end of a step: yields a function that says whether one came, which a loop asks between steps to
    save and stop. KeyboardInterrupt is raised on leaving the block; a second signal interrupts at once.

    Args:
        unit: what is finished first, for the message.
        several: whether other processes run too, each of which would stop at another step. Then nothing is deferred; nor is it
            outside the main thread, nor for signals that have another handler.
    """
    main = threading.current_thread() is threading.main_thread() and not several
    before = {number: signal.getsignal(number) for number in DEFAULT_HANDLERS}
    taken = [number for number, handler in before.items() if main and handler in (_interrupt, signal.default_int_handler)]
    pressed: list[int] = []

    def defer(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        _record(number)
        again = "press again to leave at once" if number == signal.SIGINT else "a second signal ends it at once"
        os.write(2, f"\ntilting: this {unit} is finished and saved; {again}\n".encode())  # print is not reentrant

    for number in taken:
        signal.signal(number, defer)
    try:
        yield lambda: bool(pressed)
    finally:
        for number in taken:
            if number == signal.SIGINT or not pressed:
                signal.signal(number, before[number])
    if pressed:
        raise KeyboardInterrupt
