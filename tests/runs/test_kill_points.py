"""No kill loses a run: at every point where a training command writes, then the same command, ends as the whole run does."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from support.finetuning import REWARDS
from support.paths import ROOT

FINETUNE = """finetune a-fox --reward r.py:bright --train-steps 2 --batch-size 1 --steps 2 --rank 1 --sample-images 1
--sample-every 1 --checkpoint-every 1 --early-stop 2 --judge r.py:dark --quiet --model""".split()  # noqa: SIM905
FIT = "condition fit --data labels.csv --epochs 2 --quiet".split()  # noqa: SIM905


@pytest.fixture
def here(tmp_path):
    (tmp_path / "r.py").write_text(REWARDS)
    draw = np.random.default_rng(0)
    rows = ["file,bright,red"]
    for i in range(30):
        pixels = draw.integers(0, 128, (16, 16, 3)) + 100 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'yes' if i % 2 else 'no'},{'a' if i % 3 else 'b'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def points(here, words) -> int:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "support.killing", "whole", "cut", "--", *words]
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_finetune(here, folder):
    found = points(here, [*FINETUNE, str(folder)])
    print(f"finetune: {found} write points")
    assert found > 40


@pytest.mark.slow
def test_condition_fit(here):
    found = points(here, FIT)
    print(f"condition fit: {found} write points")
    assert found > 40


@pytest.mark.slow
def test_condition_train(here, folder):
    words = ["condition", "fit", "--data", "labels.csv", "--label", "bright", "--epochs", "1", "--quiet", "--out", "FIT"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-m", "tilting", *words], cwd=here, env=env, check=True)
    train = "condition train a-fox --classifier FIT --train-steps 2 --batch-size 1 --steps 2 --rank 1 --checkpoint-every 1"
    found = points(here, [*train.split(), "--quiet", "--model", str(folder)])
    print(f"condition train: {found} write points")
    assert found > 30
