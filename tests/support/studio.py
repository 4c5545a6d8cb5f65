"""A studio as people start it, and a browser before it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")


class Served:
    """A studio's process, and where it listens."""

    def __init__(self, workspace: Path, *words: str):
        self.workspace = workspace
        command = [sys.executable, "-m", "tilting", "studio", "--workspace", str(workspace), "--port", "0", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.match(r"studio: (http://\S+)", line)
        assert found, (line, self.process.stderr.read() if self.process.stderr else "")
        self.address = found[1]

    def end(self, kill: bool = False) -> None:
        """End it as Ctrl-C does, or at once."""
        (self.process.kill if kill else self.process.terminate)()
        self.process.communicate(timeout=30)


@contextmanager
def studio(workspace: Path, *words: str) -> Iterator[Served]:
    """A studio for a while."""
    served = Served(workspace, *words)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.end()


def asked(address: str, **headers: str) -> tuple[int, str]:
    """The status and the text that an address answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


@contextmanager
def browser(**how: Any) -> Iterator[Any]:
    """Debian's chromium, by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], **how)
        try:
            yield made
        finally:
            made.close()


def until(page: Any, found: Callable[[], Any], seconds: float = 240) -> Any:
    """What is found on a page in time."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, page.inner_text("body")[-3000:]
        page.wait_for_timeout(100)
    return result
