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
REACHABLE = """() => [...document.querySelectorAll('button, input, textarea, select, a[href], summary, [tabindex="0"]')]
    .filter(one => one.checkVisibility({visibilityProperty: true}) && one.getClientRects().length && !one.disabled
        && one.tabIndex >= 0 && !one.closest('[role=tablist]') && (one.type !== 'radio' || one.checked))
    .map(one => [one.dataset.mark ?? '', one.outerHTML.slice(0, 200)])"""
"""What one can see and use, by the mark that it got when the focus came to it, and its HTML."""
FOCUS = """() => {
    const found = document.activeElement, ids = [];
    for (let one = found; one; one = one.parentElement) if (one.id) ids.push(one.id);
    const closed = found.matches('.label-wrap:not(.open)');
    return [found === document.body ? '' : found.dataset.mark ??= String(Math.random()), ids, closed]}"""
"""A mark of what has the focus, which it gets; the ids of it and of what it stands in; whether it was a part that is closed."""
BOX = "input[type=number], input[type=text], input:not([type]), textarea"


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


def until(page: Any, found: Callable[[], Any], seconds: float = 240, told: Callable[[], str] = str) -> Any:
    """What is found on a page in time; ``told`` says more of a page where it is not."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, f"{told()}\n{page.inner_text('body')[-3000:]}"
        page.wait_for_timeout(100)
    return result


class Driven:
    """A page in a browser, and its server.

    Attributes:
        outside: addresses that the page has asked for elsewhere.
        waiting: addresses that have not answered to the end.
        wrong: what the page, or an answer to it, has failed at.
    """

    def __init__(self, served: Served, page: Any):
        self.served, self.page = served, page
        self.outside, self.waiting, self.wrong = [], [], []
        page.set_default_timeout(240_000)
        page.on("request", self._seen)
        page.on("requestfinished", lambda request: self.waiting.remove(request.url))
        page.on("requestfailed", lambda request: self.waiting.remove(request.url))
        page.on("response", lambda one: self.wrong.append(f"{one.status} of {one.url}") if one.status >= 400 else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.goto(served.address)
        until(page, lambda: page.locator("#draw-go").is_visible(), told=lambda: f"waiting: {self.waiting}, wrong: {self.wrong}")

    def _seen(self, request: Any) -> None:
        self.waiting.append(request.url)
        if not request.url.startswith((self.served.address, "data:", "blob:")):
            self.outside.append(request.url)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def fill(self, where: str, value: Any) -> None:
        """Write into the box of an element."""
        self.page.locator(f"#{where}").locator(BOX).first.fill(str(value))

    def click(self, where: str) -> None:
        self.page.locator(f"#{where}").click()

    def text(self, where: str) -> str:
        box = self.page.locator(f"#{where}")
        field = box.locator("textarea")
        return field.first.input_value() if field.count() else box.inner_text()

    def has(self, where: str, words: str, seconds: float = 400) -> str:
        """The text of an element, once it holds these words."""
        until(self.page, lambda: words in self.text(where), seconds)
        return self.text(where)

    def refused(self) -> str:
        """The sentence of a refusal, which is closed."""
        toast = self.page.locator(".toast-body").first
        toast.wait_for()
        said = toast.inner_text()
        self.page.evaluate("document.querySelector('.toast-close')?.click()")  # it may have gone by itself meanwhile
        toast.wait_for(state="detached")
        return said

    def next(self) -> tuple[str, list[str]]:
        """Press Tab; the mark and the ids of what has the focus then. A part that is closed is opened, by Enter."""
        self.page.keyboard.press("Tab")
        mark, ids, closed = self.page.evaluate(FOCUS)
        if closed:
            self.page.keyboard.press("Enter")
            self.page.wait_for_timeout(200)
        return mark, ids

    def choose(self, where: str, name: str) -> None:
        """Choose an entry of a list."""
        box = self.page.locator(f"#{where} input").first
        box.click()
        self.page.get_by_role("option", name=name, exact=True).first.click()
