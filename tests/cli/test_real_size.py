"""benchmarks/real_size.py: every line of it runs without a GPU, and its page says that it has seen none."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from support.paths import ROOT
from tilting.models.placement import SWITCHES

SCRIPT = str(ROOT / "benchmarks" / "real_size.py")


@pytest.mark.slow
def test_the_benchmark_of_real_sizes_runs_tiny(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, SCRIPT, "--tiny", "--steps", "2", "--rounds", "1", "--out", str(tmp_path / "a.json")]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "a.json").read_text())
    one = found["shapes"]["tiny"]
    assert found["machine"]["gpu"] is None and one["run_s"] > 0 and one["tflop"]["network"] > 0
    assert set(one["training"]) == {"draft-k", "draft-lv", "grpo", "nft"}
    assert not [value for part in (one["switches"], one["training"]) for value in part.values() if "failed" in value]


def test_the_page_says_that_no_gpu_has_been_seen_and_names_every_switch():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert "No line of tilting has run on a GPU yet" in page
    assert [name for name in SWITCHES if f"`--{name.replace('_', '-')}`" not in page] == []
