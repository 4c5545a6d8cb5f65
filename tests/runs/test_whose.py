"""Whose a folder is: a command keeps out of what another one wrote, in one sentence. What real runs write is asked in the
tests of their commands."""

from __future__ import annotations

import json

import pytest

from support.commands import refused
from support.processes import begun
from tilting.runs import owner as whose
from tilting.runs.owner import KINDS, folder_of

pytestmark = pytest.mark.usefixtures("no_bars")

RUN = {"config": {}, "images": [], "summary": {}, "model": {}, "reward": []}
TRAINING = {"config": {}, "summary": {}, "model": {}, "reward": []}
FIT = {"config": {}, "data": {}, "labels": {}, "summary": {}}
HELD = {
    "a run of pictures": ("manifest.json", RUN),
    "training": ("manifest.json", TRAINING),
    "a fit of classifiers": ("manifest.json", FIT),
    "a sweep of strengths": ("sweep.json", {"sweep": []}),
    "a comparison": ("metrics.json", {"methods": {}}),
    "a recipe": ("table.json", {"recipe": "codex-table1"}),
}
COMMANDS = {
    "a run of pictures": ("generate", "a fox"),
    "training": ("finetune", "a fox", "--reward", "jpeg", "--objective", "ddpo"),
    "a comparison": ("compare", "a fox", "--reward", "clip"),
    "a recipe": ("recipe", "codex-table2"),
}


def test_there_is_a_folder_of_each_kind():
    assert set(HELD) | {"an evaluation"} == {kind.what for kind in KINDS}


@pytest.mark.parametrize("there", HELD)
@pytest.mark.parametrize("mine", COMMANDS)
def test_a_command_keeps_out_of_the_folder_of_another(mine, there, capsys, tmp_path, no_model):
    name, held = HELD[there]
    (tmp_path / name).write_text(json.dumps(held))
    if mine == there:
        assert folder_of(str(tmp_path), next(kind for kind in KINDS if kind.what == mine)) == tmp_path
        return
    said = refused(capsys, *COMMANDS[mine], "--out", str(tmp_path))
    assert f"holds {there}, not {mine}: choose another --out" in said
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_sweep_is_known_from_its_first_strength_on(capsys, tmp_path, no_model):
    (tmp_path / "strength-1").mkdir()
    (tmp_path / "strength-1" / "manifest.json").write_text(json.dumps(RUN))
    assert folder_of(str(tmp_path), whose.SWEEP_OF_RUNS) == tmp_path
    assert "holds a sweep of strengths" in refused(capsys, "generate", "a fox", "--out", str(tmp_path))


def test_what_one_process_makes_is_not_for_a_launcher_of_several(capsys, tmp_path, no_model, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = refused(capsys, *COMMANDS["a recipe"], "--out", str(tmp_path / "new"))
    assert "a recipe is made by one process and 2 were launched" in said and not (tmp_path / "new").exists()
    assert all(folder_of(str(tmp_path / "new"), kind) for kind in KINDS if kind.shared)


@pytest.mark.parametrize("mine", ["a run of pictures", "a comparison"])
def test_processes_that_do_not_find_each_other_write_nothing(mine, tmp_path):
    process = begun(tmp_path, *COMMANDS[mine], "--out", str(tmp_path / "new"), WORLD_SIZE="2")
    said = process.communicate()[1]
    assert process.returncode == 2 and "accelerate cannot begin" in said and not (tmp_path / "new").exists(), said


@pytest.mark.parametrize("held", ["{", "[]", '{"mine": 1}'])
@pytest.mark.parametrize("kind", [whose.COMPARISON, whose.RECIPE, whose.SWEEP_OF_RUNS])
def test_files_of_others_are_not_overwritten(kind, held, tmp_path):
    (tmp_path / kind.file).write_text(held)
    with pytest.raises(whose.TiltingError, match=f"{kind.file}' is not of {kind.what}: move it away"):
        folder_of(str(tmp_path), kind)
    assert folder_of(str(tmp_path), whose.RUN) == tmp_path  # which would not write there
