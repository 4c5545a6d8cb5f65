"""No kill loses a run: at every point where a command writes, then the same command, ends as the uninterrupted run does.

A tenth of the points is tried, another each day; `make crash` tries all of them.
"""

from __future__ import annotations

import pytest

from support.killing import COMMANDS, part, prepare
from support.processes import begun

HALVES = (["generate", "finetune", "condition sample", "evaluate", "condition fit"], ["condition train", "compare", "recipe"])
"""Of about the same time, for two workers."""


def test_every_command_is_in_a_half():
    assert sorted([*HALVES[0], *HALVES[1]]) == sorted(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("commands", HALVES, ids=" ".join)
def test_a_kill_anywhere_loses_nothing(commands, tmp_path):
    prepare(tmp_path)
    told = "/".join(map(str, part()))
    process = begun(tmp_path, *commands, module="support.killing", KILL_PART=told)
    out, err = process.communicate(timeout=36_000)
    print(f"KILL_PART={told}\n{out}", end="")
    assert process.returncode == 0, out + err
    assert [line.partition(":")[0] for line in out.splitlines()] == commands
    assert all(int(line.partition(":")[2].split()[0]) > 15 for line in out.splitlines())
