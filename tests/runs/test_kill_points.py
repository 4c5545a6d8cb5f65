"""No kill loses a run: at every point where a command writes, then the same command, ends as the uninterrupted run does.

A tenth of the points is tried, another each day; `make crash` tries all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.killing import COMMANDS, part, prepare
from support.paths import ROOT

HALVES = (["generate", "finetune", "condition sample", "evaluate", "condition fit"], ["condition train", "compare", "recipe"])
"""Of about the same time, for two workers."""


def test_every_command_is_in_a_half():
    assert sorted([*HALVES[0], *HALVES[1]]) == sorted(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("commands", HALVES, ids=" ".join)
def test_a_kill_anywhere_loses_nothing(commands, tmp_path):
    prepare(tmp_path)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])}
    env["KILL_PART"] = "/".join(map(str, part()))
    command = [sys.executable, "-m", "support.killing", *commands]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    print(f"KILL_PART={env['KILL_PART']}\n{done.stdout}", end="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == commands
    assert all(int(line.partition(":")[2].split()[0]) > 15 for line in done.stdout.splitlines())
