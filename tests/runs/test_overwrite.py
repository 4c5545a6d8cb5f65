"""--overwrite: what we wrote gives way, and only where something new comes; what others wrote stays."""

from __future__ import annotations

import json

import pytest

from support.commands import manifest, refused
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.runs.overwrite import overwriting

pytestmark = pytest.mark.usefixtures("no_bars")


def held(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "00007.png").write_bytes(b"old")
    head = {"config": {}, "images": [], "summary": {}, "model": {}, "reward": []}
    (folder / "manifest.json").write_text(json.dumps(head))
    return folder


def test_it_gives_way_to_what_is_written(run):
    with overwriting(str(run), lambda asked: "a run of pictures: replace it?" in asked):
        assert not run.exists()
        run.mkdir()
        (run / "new").write_bytes(b"new")
    assert held(run) == {"new": b"new"} and [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("leaves", [False, True])
def test_it_comes_back_where_nothing_is_written(run, leaves):
    before = held(run)

    def fails():
        if leaves:
            run.mkdir()
        raise TiltingError("never mind")

    with pytest.raises(TiltingError, match="never mind"), overwriting(str(run), lambda asked: True):
        fails()
    assert held(run) == before and [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("made", [False, True])
def test_it_comes_back_where_a_command_fails_before_it_has_made_anything(run, made):
    before = held(run)

    def fails():
        (run / "samples" / "000000").mkdir(parents=True)
        (run / "samples" / "000000" / "00.png").write_bytes(b"of the model as it was")
        (run / "manifest.json").write_text("{}")
        if made:
            (run / "metrics.jsonl").write_text("{}\n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), overwriting(str(run), lambda asked: True):
        fails()
    assert (held(run) == before) != made and [path.name for path in run.parent.iterdir()] == ["run"]


def test_one_process_replaces_what_is_there(run, monkeypatch):
    before = held(run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    refusal = pytest.raises(TiltingError, match="--overwrite is of one process, and 2 were launched")
    with refusal, overwriting(str(run), lambda asked: True):
        raise AssertionError
    assert held(run) == before


def test_a_reward_that_fails_loses_no_finished_run(capsys, tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(
        "def ok(images, prompts):\n    return images.mean((1, 2, 3))\n\n\ndef bad(images, prompts):\n    raise ValueError\n"
    )
    words = ["generate", "a fox", "--model", str(folder), "--steps", "2", "--out", "run", "--quiet", "--reward"]
    assert main([*words, "r.py:ok"]) == 0
    before = held(tmp_path / "run")
    assert "raised ValueError" in refused(capsys, *words, "r.py:bad", "--overwrite")
    assert held(tmp_path / "run") == before


def test_who_says_no_keeps_it_and_what_is_not_ours_stays(run):
    before = held(run)
    with pytest.raises(TiltingError, match="left as it is"), overwriting(str(run), lambda asked: False):
        raise AssertionError
    (run / "manifest.json").unlink()
    with pytest.raises(TiltingError, match="holds something else"), overwriting(str(run), lambda asked: True):
        raise AssertionError
    assert held(run).items() <= before.items()
    with overwriting(str(run.parent / "none"), lambda asked: False):
        pass


def test_the_commands_have_it(capsys, tmp_path, folder):
    words = ["generate", "a fox", "--model", str(folder), "--out", str(tmp_path / "run"), "--quiet", "--steps"]
    assert main([*words, "2"]) == 0
    assert refused(capsys, *words, "3").endswith("choose another --out, or --overwrite\n")
    assert main([*words, "3", "--overwrite"]) == 0
    assert manifest(tmp_path / "run")["config"]["steps"] == 3
    before = held(tmp_path / "run")
    assert "did you mean" in refused(capsys, *words, "4", "--overwrite", "--reward", "clp")
    assert held(tmp_path / "run") == before
