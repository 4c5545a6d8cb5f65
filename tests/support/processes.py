"""Commands in processes of their own."""

from __future__ import annotations

import atexit
import os
import socket
import time

from support.forks import Forked, server
from support.paths import ROOT

WORDS = "finetune a-fox --reward r.py:slow --train-steps 2 --batch-size 1 --steps 2 --rank 1 --sample-every 0 --quiet".split()  # noqa: SIM905
ENV = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])}


def begun(here, *words, module="tilting", **env):
    """A command that has been started in a folder; a test that fails leaves none behind."""
    process = Forked(server(), module, *words, cwd=here, env={**os.environ, **ENV, **env})
    atexit.register(process.kill)
    return process


def launched(here, *words, count=2, **how):
    """The processes of a command as a launcher starts them, which meet at a port of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    place["LOCAL_WORLD_SIZE"] = str(count)
    return [begun(here, *words, RANK=str(index), LOCAL_RANK=str(index), **place, **how) for index in range(count)]


def awaited(path, process, seconds=120):
    """Wait until a file of a process is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.said()
        time.sleep(0.05)
