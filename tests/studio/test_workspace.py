"""What a page may read and keep: nothing outside of the workspace, nothing without bounds."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tilting.cli import main
from tilting.errors import TiltingError
from tilting.studio.show import curve
from tilting.studio.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    (tmp_path / "work" / "models").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "secret.png").write_bytes(b"-")
    (tmp_path / "work" / "away").symlink_to(tmp_path / "secret.png")
    (tmp_path / "work" / "clip").write_text("a file of a reward's name")
    return Workspace((tmp_path / "work").resolve(), ((tmp_path / "other").resolve(),), 1000)


@pytest.mark.parametrize(
    "options",
    [
        {"image": "/etc/passwd"},
        {"image": "../secret.png"},
        {"image": "away"},
        {"image": "models/../../secret.png"},
        {"lora": ["../secret.png=0.5"]},
        {"lora": ["runs/a", "~/b"]},
        {"reward": ["/tmp/evil.py:score=2"]},
        {"reward": ["clip", "likelihood:../fit#bright=1"]},
        {"reward": ["geneval:models#/etc/passwd"]},
        {"input": ["mask_image=/etc/passwd"]},
        {"model": "weights.safetensors=/etc"},
        {"set": {"pref.file": "/etc/passwd"}},
        {"methods": ["lora:../a"]},
        {"out": "/tmp/out"},
        {"data": "/etc"},
    ],
    ids=str,
)
def test_what_lies_outside_is_refused(workspace, monkeypatch, options):
    monkeypatch.chdir(workspace.root)
    with pytest.raises(TiltingError, match="lies outside of the workspace"):
        workspace.check(options)


def test_what_lies_inside_is_not(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace.root)
    workspace.check(
        {
            "prompts": ["a fox / a cat", "../a", "/etc/passwd"],
            "negative-prompt": "/etc",
            "model": "owner/name",
            "image": "models/none.png",
            "reward": ["clip", "color:red=0.5", "https://scores.example/a?b=1"],
            "lora": [str(tmp_path / "other" / "lora")],
            "steps": 4,
        }
    )


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", ".studio/worker.log", "none", "away", ""])
def test_no_file_outside_is_shown(workspace, name):
    (workspace.root / ".studio").mkdir()
    (workspace.root / ".studio" / "worker.log").write_text("-")
    if name == "":
        assert workspace.file(name) == workspace.root
    else:
        with pytest.raises(TiltingError, match="there is no"):
            workspace.file(name)


def zipped(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def test_a_zip_of_class_folders_is_kept_as_they_are(workspace, tmp_path):
    given = zipped(tmp_path / "a.zip", {"bright/a.png": b"1", "dark/b.png": b"2", "dark/run.py": b"3"})
    kept = workspace.root / workspace.keep([given])
    assert sorted(p.relative_to(kept).as_posix() for p in kept.rglob("*.*")) == ["bright/a.png", "dark/b.png"]
    assert workspace.keep([given]) == kept.relative_to(workspace.root).as_posix()


def test_a_table_is_kept_beside_its_pictures(workspace, tmp_path):
    (tmp_path / "labels.csv").write_text("file,bright\na.png,yes\n")
    (tmp_path / "a.png").write_bytes(b"1")
    kept = workspace.keep([str(tmp_path / "labels.csv"), str(tmp_path / "a.png")])
    assert kept.endswith("/labels.csv")
    assert (workspace.root / kept).with_name("a.png").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"a.py": b"print()"}, "neither a table nor a picture"),
        ({"a.png": b"-" * 2000}, "more than 0 MB"),
        ({"a.zip": b"PK no zip"}, "is no zip"),
    ],
    ids=str,
)
def test_what_is_not_kept(workspace, tmp_path, files, sentence):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TiltingError, match=sentence):
        workspace.keep([str(tmp_path / name) for name in files])
    assert not (workspace.root / "uploads").exists()


@pytest.mark.parametrize(
    "inside", [{"../evil.csv": b"1"}, {"/etc/evil.csv": b"1"}, {"big.png": bytes(9000)}], ids=lambda d: str(list(d))
)
def test_a_zip_that_leads_out_or_swells(workspace, tmp_path, inside):
    with pytest.raises(TiltingError):
        workspace.keep([zipped(tmp_path / "a.zip", inside)])
    assert not list(workspace.root.rglob("*.csv"))


def test_runs_are_found(workspace, monkeypatch, folder):
    monkeypatch.chdir(workspace.root)
    words = ["--model", str(folder), "--reward", "jpeg", "--steps", "2", "--quiet"]
    assert main(["generate", "a fox", *words, "--out", "one"]) == 0
    assert main(["generate", "a cat", *words, "--out", "deep/two"]) == 0
    found = {run.name: run for run in workspace.runs()}
    assert set(found) == {"one", "deep/two"}
    assert found["one"].kind == "a run of pictures"
    assert found["one"].about == "base: a fox"
    assert found["one"].result.startswith("reward ")
    told = json.loads((workspace.root / "one" / "manifest.json").read_text())
    told["config"].pop("method")
    (workspace.root / "one" / "manifest.json").write_text(json.dumps(told))
    assert {run.name: run.about for run in workspace.runs()}["one"] == "a fox"  # as of a fit, or an evaluation


def test_a_single_point_is_no_curve():
    assert "<svg" not in curve("judge", [(40, -0.4)]) and "-0.4" in curve("judge", [(40, -0.4)]).replace("−", "-")
    assert "<svg" in curve("judge", [(0, -0.1), (40, -0.4)])
