"""The walks of examples/, in their small form: they run by the README's commands alone, and leave what they promise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.forks import server
from support.paths import ROOT
from support.processes import ENV

LEFT = {
    "practitioner": (
        "base/grid.png",
        "warm/compare.html",
        "lora/lora/pytorch_lora_weights.safetensors",
        "before-after/table.csv",
    ),
    "researcher": (
        "columns/table.tex",
        "columns/figures/gain.pdf",
        "sweep/figures/gain-codex.strength.svg",
        "judged/report.html",
    ),
    "scientist": (
        "fit/reliability.png",
        "guided/sweep.png",
        "control/samples/000002.png",
        "control/curve.png",
        "drawn/sweep.json",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT)
def test_a_walk_leaves_what_it_promises(name, tmp_path):
    tilting = f"{sys.executable} -S {ROOT / 'tests' / 'support' / 'forks.py'} {server()} tilting"
    environment = {**os.environ, **ENV, "SMALL": "1", "TILTING": tilting}
    script = str(ROOT / "examples" / f"{name}.sh")
    done = subprocess.run(["sh", script, "out"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert [file for file in LEFT[name] if not (tmp_path / "out" / file).is_file()] == []


def test_every_walk_is_tried():
    assert {file.stem for file in (ROOT / "examples").glob("*.sh")} == set(LEFT)
