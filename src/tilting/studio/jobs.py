"""Commands that outlive the page: processes of the ordinary command line, one at a time on each device, others in a queue.

A job is a file, .studio/jobs/NUMBER.json, with the words of its command, and a log beside it; what it makes is an ordinary
run's folder. A studio that is started again finds those that still run, and starts none that a file tells of by itself: the
file may be somebody else's.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from tilting.declare import made
from tilting.disk import make_folder
from tilting.errors import TiltingError
from tilting.runs.files import read_json, write_json

State = Literal["waits", "runs", "is done", "failed", "was stopped"]
EVERY = 0.5
"""Seconds between two looks at the queue."""
STOPPED = (130, 143, 129, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGINT)
LAST = 64_000
"""Bytes of a log's end that are read."""
CODE = re.compile(r"\.py\b|://|^--config\b", re.IGNORECASE)
"""Words by which a command runs code, or asks a server."""


def check_told(whose: str, words: Sequence[str]) -> None:
    """Refuse a command that only a file tells of, where it runs a Python file, asks a server, or has options of another file.
    Raises TiltingError."""
    odd = next((word for word in words if CODE.search(word)), None)
    if odd is not None:
        told = shlex.join(("tilting", *words))
        raise TiltingError(f"{whose} was not begun on this page, and names {odd!r}: if you trust it, type it yourself: {told}")


@dataclass(frozen=True)
class Job:
    """A command in the queue.

    Attributes:
        number: of it; lower ones come first.
        words: after ``tilting``.
        out: the folder that it writes, in the workspace.
        device: that it asks for.
        pid, begun: of its process, and when that was made, by the system's clock; 0 while it waits.
        code: its exit code; None until it is known.
        over: its process is gone.
    """

    number: int
    words: tuple[str, ...]
    out: str
    device: str = "auto"
    pid: int = 0
    begun: float = 0.0
    code: int | None = None
    over: bool = False


class Jobs:
    """The jobs of a workspace.

    Args:
        root: where commands stand.
        folder: of the jobs' files.

    Attributes:
        mine: the processes that it started itself, by number.
        asked: the numbers of the jobs that were put into the queue here; the others are of files.
    """

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder = root, folder
        self.lock = threading.RLock()
        self.mine: dict[int, subprocess.Popen[bytes]] = {}
        self.asked: set[int] = set()
        make_folder(folder)
        found = [job for job in map(self._read, folder.glob("*.json")) if job is not None]
        self.all = {job.number: job if job.pid else replace(job, over=True) for job in found}

    def add(self, words: Sequence[str], out: str, device: str = "auto") -> Job:
        """Put a command into the queue. Raises TiltingError where one that is not over writes into the same folder."""
        with self.lock:
            twin = next((job for job in self.all.values() if job.out == out and not job.over), None)
            if twin is not None:
                raise TiltingError(
                    f"job {twin.number} {self.state(twin)} and writes into {out!r}: wait for it, or choose another"
                )
            job = Job(max(self.all, default=0) + 1, tuple(words), out, device)
            self.asked.add(job.number)
            self._write(job)
            self.tick()
            return self.all[job.number]

    def tick(self) -> None:
        """See which processes are gone, and start the next one of every device that is free."""
        with self.lock:
            for job in list(self.all.values()):
                if job.pid and not job.over and not self._lives(job):
                    process = self.mine.pop(job.number, None)
                    self._write(replace(job, over=True, code=None if process is None else process.returncode))
            busy = {job.device for job in self.all.values() if job.pid and not job.over}
            for job in sorted(self.all.values(), key=lambda job: job.number):
                if not job.pid and not job.over and job.device not in busy:
                    busy.add(job.device)
                    self._start(job)

    def watch(self) -> None:
        """Look at the queue for ever, in the background."""

        def look() -> None:
            while True:
                time.sleep(EVERY)
                with suppress(TiltingError):  # of a full disk; the page says so when it asks for something
                    self.tick()

        threading.Thread(target=look, daemon=True).start()

    def state(self, job: Job) -> State:
        """What it does."""
        if not job.over:
            return "runs" if job.pid else "waits"
        said = self.said(job) if job.code is None else ""  # of a process that is another studio's nobody knows the code
        if job.code in STOPPED or not job.pid or said.startswith("tilting: interrupted"):
            return "was stopped"
        return "failed" if job.code or said.startswith("tilting: ") else "is done"

    def said(self, job: Job) -> str:
        """The last line that it wrote."""
        try:
            with open(self._log(job), "rb") as file:
                file.seek(max(0, os.path.getsize(self._log(job)) - LAST))
                lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def stop(self, number: int) -> None:
        """End a job: it saves what it has, and goes on from there when it is put into the queue again."""
        with self.lock:
            job = self.find(number)
            if not job.pid:
                self._write(replace(job, over=True))
            elif not job.over and self._lives(job):
                with suppress(OSError):
                    os.kill(job.pid, signal.SIGTERM)

    def again(self, number: int) -> Job:
        """Put a job that is over into the queue once more: the same command goes on where it stopped. Raises TiltingError for
        one that only a file tells of, and that names code."""
        with self.lock:
            job = self.find(number)
            if number not in self.asked:
                check_told(f"job {number}", job.words)
            return self.add(job.words, job.out, job.device)

    def find(self, number: int) -> Job:
        """A job. Raises TiltingError."""
        if number not in self.all:
            raise TiltingError(f"there is no job {number}")
        return self.all[number]

    def of(self, out: str) -> Job | None:
        """The newest job that writes into a folder."""
        return next((job for job in sorted(self.all.values(), key=lambda job: -job.number) if job.out == out), None)

    def _lives(self, job: Job) -> bool:
        process = self.mine.get(job.number)
        if process is not None:
            return process.poll() is None
        try:
            found = psutil.Process(job.pid)
            return abs(found.create_time() - job.begun) < 1 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def _start(self, job: Job) -> None:
        command = [sys.executable, "-m", "tilting", *job.words]
        try:
            with open(self._log(job), "wb") as log:
                process = subprocess.Popen(
                    command, cwd=self.root, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            self._write(replace(job, over=True, pid=-1, code=1))
            raise TiltingError(f"job {job.number} cannot be started: {error.strerror}") from error
        self.mine[job.number] = process
        try:
            begun = psutil.Process(process.pid).create_time()
        except psutil.Error:  # it is gone already
            begun = 0.0
        self._write(replace(job, pid=process.pid, begun=begun))

    def _log(self, job: Job) -> Path:
        return self.folder / f"{job.number}.log"

    def _read(self, path: Path) -> Job | None:
        try:
            return made(Job, read_json(path), repr(str(path)))
        except TiltingError:
            return None

    def _write(self, job: Job) -> None:
        write_json(self.folder / f"{job.number}.json", asdict(job))
        self.all[job.number] = job
