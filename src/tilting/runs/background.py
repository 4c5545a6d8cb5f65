"""One background thread that does work in order: encoding and writing images, asking a remote scorer.

It is a daemon thread: work that has not begun when the process ends is not done.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from tilting.lazy import torch

Some = TypeVar("Some")


class Background:
    """A thread with a bounded queue.

    Args:
        most: length of the queue; `submit` blocks while it is full, which bounds memory.
    """

    def __init__(self, most: int = 2):
        self._work: queue.Queue[tuple[Callable[[], Any], Future] | None] = queue.Queue(most)
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._over = False

    def submit(self, work: Callable[[], Some]) -> Future[Some]:
        """Queue a call, which runs without gradients. Raises what an earlier one raised; nothing runs after a failure."""
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        done: Future[Some] = Future()
        self._work.put((work, done))
        return done

    def finish(self) -> None:
        """Wait until the queue is empty and end the thread. Raises what a call raised."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None
        self._raise()

    def cancel(self) -> None:
        """Drop the queue without waiting for the call that is running."""
        self._over = True
        with suppress(queue.Full):  # then the thread will see one, and that all is over
            self._work.put_nowait(None)

    def _raise(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _run(self) -> None:
        broken = False
        while (piece := self._work.get()) is not None and not self._over:
            work, done = piece
            if broken:
                done.cancel()
                continue
            try:
                with torch.no_grad():
                    done.set_result(work())
            except BaseException as error:
                broken, self._failed = True, error
                done.set_exception(error)
