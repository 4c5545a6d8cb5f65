"""Commands in processes of their own."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time

from support.paths import ROOT

WORDS = "finetune a-fox --reward r.py:slow --train-steps 2 --batch-size 1 --steps 2 --rank 1 --sample-every 0 --quiet".split()  # noqa: SIM905
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}


def begun(here, *words):
    """A command that has been started in a folder; a test that fails leaves none behind."""
    process = subprocess.Popen([sys.executable, "-m", "tilting", *words], cwd=here, env=ENV, stderr=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process


def awaited(path, process, seconds=120):
    """Wait until a file of a process is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.05)
