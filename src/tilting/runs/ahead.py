"""Work that one other thread does, in order, while its owner goes on: encoding and writing pictures, asking a remote scorer.

The thread does not outlive its process: what it has not begun by then is not done.
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


class Ahead:
    """One thread and what waits for it; left as a block, it is waited for, and what failed last is raised.

    Args:
        most: pieces of work that may wait; who brings one more waits itself, so that memory is bounded.
    """

    def __init__(self, most: int = 2):
        self._work: queue.Queue[tuple[Callable[[], Any], Future] | None] = queue.Queue(most)
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._over = False

    def do(self, work: Callable[[], Some]) -> Future[Some]:
        """Have something done without gradients. Raises what an earlier piece raised; nothing is done after that."""
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        done: Future[Some] = Future()
        self._work.put((work, done))
        return done

    def finish(self) -> None:
        """Wait until all is done. Raises what failed."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None
        self._raise()

    def drop(self) -> None:
        """Begin no more of what waits, and do not wait for what has begun."""
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
