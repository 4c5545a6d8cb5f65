"""Processes that begin with all imported: forked from one that has imported it, `python -m support.forks SOCKET`.

They are processes of their own, of the same code, which end as any do; what is not paid again are the seconds of imports that
every command begins with. Beside this, `python forks.py SOCKET MODULE WORD...` is for a shell: it exits as the process does.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

NUMBER = struct.Struct("q")
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that a process finds ignored where the one that has started it ignores them."""
PRELOADED = (
    "tilting.generation.run",
    "tilting.evaluation.run",
    "tilting.evaluation.compare",
    "tilting.training.run",
    "tilting.conditioning.fit_run",
    "tilting.conditioning.train_run",
    "tilting.conditioning.sample_run",
    "tilting_papers.codex.measure",
    "accelerate",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)


@cache
def server() -> str:
    """The address of this process's server, which is started when it is first asked for and ends with it."""
    from support.paths import ROOT

    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    command = [sys.executable, "-m", "support.forks", str(folder / "s")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin and process.stdout and process.stdout.readline()

    def end() -> None:
        process.stdin.close()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return command[-1]


class Forked:
    """A process as `subprocess.Popen` has it, whose output is kept in files; ``env`` is its whole environment."""

    def __init__(self, address: str, module: str, *words: str, cwd: str | Path, env: dict[str, str], files=None):
        self.returncode: int | None = None
        self.stdout, self.stderr = files or [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self.link = socket.socket(socket.AF_UNIX)
        self.link.connect(address)
        ignored = [int(one) for one in HANDLED if signal.getsignal(one) is signal.SIG_IGN]
        told = json.dumps([str(cwd), env, ignored, [module, *map(str, words)]]).encode() + b"\n"
        socket.send_fds(self.link, [told], [self.stdout.fileno(), self.stderr.fileno()])
        (self.pid,) = NUMBER.unpack(self.link.recv(NUMBER.size))

    def poll(self, seconds: float = 0) -> int | None:
        """The exit status, if it ends in so many seconds."""
        if self.returncode is None and select.select([self.link], [], [], seconds)[0]:
            (self.returncode,) = NUMBER.unpack(self.link.recv(NUMBER.size))
            self.link.close()
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        code = self.poll(timeout)
        assert code is not None, f"it does not end: {self.said()}"
        return code

    def said(self) -> tuple[str, str]:
        """What it has written to the standard output and to that of errors."""
        for file in (self.stdout, self.stderr):
            file.seek(0)
        return self.stdout.read(), self.stderr.read()

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        self.wait(timeout)
        return self.said()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def preload() -> None:
    """Import what commands import, a pipeline of diffusers and its model among it."""
    import gc
    import threading

    from tilting.lazy import hush

    hush()
    for module in PRELOADED:
        __import__(module)
    from tqdm import tqdm

    import tilting

    tqdm.monitor_interval = 0  # no thread of it is alive at a fork
    tqdm.set_lock(threading.RLock())  # its own would be shared: a process that is killed within a bar would hold it for ever
    tilting.load("pocket")
    gc.freeze()


def serve(address: str) -> list[str]:
    """Fork for everyone who connects, and tell them its number and, later, its exit status; returns in the forked process, the
    module and the words that it is to be. Ends when the standard input does."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    print(flush=True)
    links: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, ended, 0], [], [])
        if 0 in ready:
            for pid in links:
                os.kill(pid, signal.SIGKILL)
            sys.exit()
        if listener in ready:
            link, _ = listener.accept()
            told, files, *_ = socket.recv_fds(link, 1 << 16, 2)
            while not told.endswith(b"\n"):
                told += link.recv(1 << 16)
            pid = os.fork()
            if pid == 0:
                return become(files, *json.loads(told))
            for file in files:
                os.close(file)
            links[pid] = link
            link.sendall(NUMBER.pack(pid))
        if ended in ready:
            os.read(ended, 1 << 16)
        for pid in list(links):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                with links.pop(pid) as link:
                    link.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))


def become(files: list[int], here: str, env: dict[str, str], ignored: list[int], words: list[str]) -> list[str]:
    """Make this process one that has just been started, in that folder and environment."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(here)
    os.environ.clear()
    os.environ.update(env)
    sys.path[0] = here
    return words


if __name__ == "__main__":
    if len(sys.argv) == 2:
        preload()
        module, *sys.argv[1:] = serve(sys.argv[1])
        code = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = 1
        with suppress(OSError, ValueError, AttributeError):  # closed
            sys.stdout.flush()
        os._exit(code or 0)  # libraries wait at the end of an interpreter for threads that were not forked
    else:
        address, module, *words = sys.argv[1:]
        code = Forked(address, module, *words, cwd=os.getcwd(), env=dict(os.environ), files=(sys.stdout, sys.stderr)).wait()
        sys.exit(code if code >= 0 else 128 - code)
