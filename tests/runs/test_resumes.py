"""Runs that an earlier version of the code made, tests/fixtures/runs: the same command goes on in each, or leaves it as it is,
and ends with the digits that the earlier version gives; what `evaluate` and `lora` read of them is the same too."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from support.digits import closeness, differences, one_thread, read_digits
from support.paths import ROOT
from support.today import write
from tilting.cli import main

pytestmark = pytest.mark.usefixtures("undrawn")

HERE = ROOT / "tests" / "fixtures"
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
FIXTURES, REL = EXPECTED["fixtures"], closeness(EXPECTED["made"])

single = pytest.fixture(one_thread)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bring(place: Path, *parts: str) -> None:
    """Copy files and folders of the fixtures, with their times."""
    for part in parts:
        there = place / part
        there.parent.mkdir(parents=True, exist_ok=True)
        if (HERE / part).is_dir():
            shutil.copytree(HERE / part, there)
        else:
            shutil.copy2(HERE / part, there)


def stamps(folder: Path) -> dict[Path, int]:
    """When pictures and weights were written; checkpoints come and go."""
    files = (*folder.rglob("images/*.png"), *folder.rglob("*.safetensors"))
    return {file: file.stat().st_mtime_ns for file in files if "checkpoints" not in file.parts}


ROUNDED = "recipe-codex-begun"
"""Of 6 steps from a strength of 0.6, which left four of them by rounding; diffusers leaves three."""
SHARED = "generate-codex"
"""Two rewards of one CLIP, which is asked once today, and rounds otherwise: with a pass for each its digits are as before."""


@pytest.mark.parametrize("name", [name for name in FIXTURES if name != ROUNDED])
def test_a_run_of_before_goes_on_to_the_same_digits(name, place, single, monkeypatch):
    fixture = FIXTURES[name]
    if name.startswith(SHARED):
        monkeypatch.setattr("tilting.rewards.weighted_sum.once", nullcontext)
    folder = Path("runs", name)
    bring(place, *fixture["needs"], *([] if fixture["fresh"] else [folder.as_posix()]))
    before = stamps(folder)
    assert main(fixture["argv"]) == 0
    assert not list(differences(fixture["digits"], read_digits(folder), REL))
    after = stamps(folder)
    kept = {file for file in before if file.suffix == ".png" or not fixture["begun"]}
    assert {file: after[file] for file in kept} == {file: before[file] for file in kept}  # nothing is drawn or trained again


def test_a_run_from_a_picture_in_another_number_of_steps_is_refused(place, capsys):
    bring(place, *FIXTURES[ROUNDED]["needs"], f"runs/{ROUNDED}")
    before = stamps(Path("runs"))
    assert main(FIXTURES[ROUNDED]["argv"]) == 2
    assert "whose strength left another number of 6 steps than diffusers': choose another --out" in capsys.readouterr().err
    assert stamps(Path("runs")) == before


@pytest.mark.parametrize("name", [name for name, fixture in FIXTURES.items() if fixture["fresh"]])
def test_what_is_written_whole_is_known_and_not_written_over(name, place, capsys):
    bring(place, *FIXTURES[name]["needs"], f"runs/{name}")
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    assert main(FIXTURES[name]["argv"]) == 2
    assert f"runs/{name}" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before


def test_a_run_of_flux_from_before_its_latents_were_packed_is_refused(tmp_path, capsys):
    """Such a folder's config has no option mask; a finished one is left as it is."""
    out = tmp_path / "run"
    words = ["finetune", "a fox", "--model", str(write("flux", tmp_path / "flux")), "--reward", "color:red", "--quiet"]
    words += ["--steps", "2", "--batch-size", "1", "--rank", "2", "--sample-every", "0", "--out", str(out)]
    words += ["--height", "16", "--width", "16"]
    assert main([*words, "--train-steps", "1"]) == 0
    told = json.loads((out / "manifest.json").read_text())
    del told["config"]["mask"]
    (out / "manifest.json").write_text(json.dumps(told))
    assert main([*words, "--train-steps", "1"]) == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    capsys.readouterr()
    assert main([*words, "--train-steps", "2"]) == 2
    assert "before its latents were packed" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
