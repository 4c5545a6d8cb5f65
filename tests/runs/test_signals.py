"""SIGTERM and SIGHUP save as Ctrl-C does and end with 143 and 129; a second one ends at once. Real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from support.commands import manifest
from support.processes import ENV, WORDS, awaited, begun

REWARD = """
import os, pathlib, time

def slow(images, prompts):
    calls = pathlib.Path("calls")
    made = int(calls.read_text()) + 1 if calls.exists() else 1
    calls.write_text(str(made))
    if made == int(os.environ.get("HOLD_AT", "3")):
        pathlib.Path("drawn").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.02)
    return images.mean((1, 2, 3))
slow.differentiable = True
"""
BY = [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)]


def stopped(here, name, *words):
    """A command that gets a signal while it holds, and goes on to finish what it does: its process, and what it said."""
    process = begun(here, *words)
    awaited(here / "drawn", process)
    process.send_signal(getattr(signal, name))
    time.sleep(0.3)
    (here / "go").touch()
    return process, process.communicate(timeout=120)[1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), BY)
def test_training_saves_the_step_that_has_begun(name, code, tmp_path, folder):
    (tmp_path / "r.py").write_text(REWARD)
    words = [*WORDS, "--checkpoint-every", "50", "--model", str(folder), "--out", "run"]
    words[words.index("--train-steps") + 1] = "5"
    process, said = stopped(tmp_path, name, *words)
    assert process.returncode == code, said
    assert "this step is finished and saved" in said and "the same command goes on" in said
    steps = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert 0 < steps < 5 and manifest(tmp_path / "run")["summary"]["steps"] == steps
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"{steps:08d}"]
    again = begun(tmp_path, *words)
    assert again.communicate(timeout=120)[1] == "" and again.returncode == 0
    assert manifest(tmp_path / "run")["summary"]["finished"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_second_signal_ends_at_once(name, tmp_path, folder):
    (tmp_path / "r.py").write_text(REWARD)
    process = begun(tmp_path, *WORDS, "--model", str(folder), "--out", "run")
    awaited(tmp_path / "drawn", process)
    process.send_signal(getattr(signal, name))
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode in (143, -signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), BY)
def test_drawing_keeps_what_is_drawn(name, code, tmp_path, folder):
    (tmp_path / "r.py").write_text(REWARD)
    words = "generate a-fox --images 4 --batch-size 1 --steps 2 --reward r.py:slow --quiet --out run".split()  # noqa: SIM905
    process, said = stopped(tmp_path, name, *words, "--model", str(folder))
    assert process.returncode == code and "the same command goes on" in said, said
    kept = [record["file"] for record in manifest(tmp_path / "run")["images"]]
    assert kept == ["images/00000.png", "images/00001.png"]
    again = begun(tmp_path, *words, "--model", str(folder))
    assert again.wait(120) == 0 and len(manifest(tmp_path / "run")["images"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), BY)
def test_a_fit_saves_the_epoch_that_has_begun(name, code, tmp_path):
    draw = np.random.default_rng(0)
    rows = ["file,bright"]
    for i in range(40):
        Image.fromarray(draw.integers(0, 200, (16, 16, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'yes' if i % 2 else 'no'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    words = "condition fit --data labels.csv --kind cnn --epochs 9999 --patience 9999 --quiet --out fit".split()  # noqa: SIM905
    process = begun(tmp_path, *words)
    awaited(tmp_path / "fit" / "checkpoints" / "00000002", process)
    process.send_signal(getattr(signal, name))
    said = process.communicate(timeout=120)[1]
    assert process.returncode == code and "this epoch is finished and saved" in said, said
    newest = max((tmp_path / "fit" / "checkpoints").iterdir())
    state = json.loads((newest / "state.json").read_text())
    assert len(state["history"]) == state["step"] == int(newest.name)


@pytest.mark.slow
def test_an_ignored_signal_stays_ignored(tmp_path, folder):
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        (tmp_path / "r.py").write_text(REWARD)
        process, said = stopped(tmp_path, "SIGHUP", *WORDS, "--model", str(folder), "--out", "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.returncode == 0 and said == ""


SENT_WITHIN = """
import os, pathlib, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy.version" and not pathlib.Path("sent").exists():
            pathlib.Path("sent").write_text(str("torch" in sys.modules))
            os.kill(os.getpid(), getattr(signal, os.environ["SEND"]))

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), BY)
def test_a_signal_within_an_extension_is_obeyed_after_it(name, code, tmp_path):
    """Torch's own extension imports numpy and swallows what is raised meanwhile: the command went on without numpy."""
    (tmp_path / "sitecustomize.py").write_text(SENT_WITHIN)
    env = {**os.environ, **ENV, "SEND": name, "PYTHONPATH": os.pathsep.join([str(tmp_path), ENV["PYTHONPATH"]])}
    words = [sys.executable, "-m", "tilting", "generate", "a fox", "--steps", "2", "--method", "base", "--out", "run"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (tmp_path / "sent").read_text() == "True"
    assert done.returncode == code and "tilting: interrupted" in done.stderr, done.stderr
    assert not (tmp_path / "run" / "images").exists()
