"""The worker's side of the page: it is started, asked, and started again when it has died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tilting.errors import TiltingError

LOG = "worker.log"
AGAIN = "it is started again, so ask once more"


class Resident:
    """A worker process that stays; one request at a time.

    Args:
        root: the folder that it stands in.
        own: where its log goes.
    """

    def __init__(self, root: Path, own: Path):
        self.root, self.own = root, own
        self.busy, self._writing = threading.Lock(), threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """The process, a new one where there is none that lives."""
        if self.process is None or self.process.poll() is not None:
            with open(self.own / LOG, "w", encoding="utf-8") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tilting.studio.worker"],
                    cwd=self.root,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                )
        return self.process

    def warm(self, model: str) -> None:
        """Load a model in the background, unless the worker is asked for something first."""

        def load() -> None:
            with suppress(TiltingError):
                self.last("load", model=model)

        threading.Thread(target=load, daemon=True).start()

    def ask(self, do: str, **more: Any) -> Iterator[dict[str, Any]]:
        """The answers to a request, one after the other; who leaves early stops it.

        Raises:
            TiltingError: what was asked cannot be; or the worker died over it, in which case there is a new one.
        """
        with self.busy:
            process = self.start()
            over = False
            try:
                self._say(process, {"do": do, **more})
                while not over:
                    answer = self._answer(process)
                    over = "end" in answer
                    if "refused" in answer:
                        raise TiltingError(answer["refused"])
                    if not over:
                        yield answer
            finally:
                if not over and process.poll() is None:
                    with suppress(TiltingError):
                        self._say(process, {"do": "stop"})
                        while "end" not in self._answer(process):
                            pass

    def last(self, do: str, **more: Any) -> dict[str, Any]:
        """All answers to a request as one."""
        return {key: value for answer in self.ask(do, **more) for key, value in answer.items()}

    def stop(self) -> None:
        """End what is being drawn, after its step."""
        if self.process is not None and self.process.poll() is None:
            with suppress(TiltingError):
                self._say(self.process, {"do": "stop"})

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _say(self, process: subprocess.Popen[str], request: dict[str, Any]) -> None:
        assert process.stdin is not None
        try:
            with self._writing:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
        except OSError:
            raise self._died(process) from None

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith("\n"):
            raise self._died(process)
        return json.loads(line)

    def _died(self, process: subprocess.Popen[str]) -> TiltingError:
        code = process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        log = (self.own / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        why = f" ({log[-1][:150]})" if log and code > 0 else ""
        if os.path.isdir(self.root):
            self.start()
        return TiltingError(f"the worker that draws {how}{why}: {AGAIN}")
