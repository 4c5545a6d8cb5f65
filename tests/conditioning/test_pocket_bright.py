"""The control in the package, by its name."""

from __future__ import annotations

import pytest

import tilting as tl
from support.commands import refused
from tilting.cli.demo import BRIGHT
from tilting.errors import TiltingError
from tilting.features.packaged import POCKET_BRIGHT
from tilting.models.control_spec import CONTROLS, find_control, read_control


@pytest.fixture(scope="module")
def bright():
    named: dict = {}
    exec(BRIGHT, named)
    return named["bright"]


@pytest.mark.slow
def test_its_foxes_are_dark_and_bright_as_asked_and_near_the_models_own(bright):
    pipe = tl.load("pocket")
    control = tl.load_control("pocket-bright", pipe)
    how = {"steps": 8, "images": 2, "seed": 5, "progress": False}
    base = tl.generate(pipe, "a fox", **how)
    own = bright(base.images, ["a fox"] * 2)
    for asked in (40, 90):
        drawn = tl.condition_sample(control, "a fox", {"bright": asked}, **how)
        found = bright(drawn.images, ["a fox"] * 2)
        assert ((found - asked).abs() < (own - asked).abs() - 3).all() and (found - asked).abs().max() < 15
        assert drawn.manifest["summary"]["judge_mean"] > base.manifest["summary"]["judge_mean"] - 0.5


def test_it_is_small_and_nothing_in_it_is_executed():
    files = [path for path in POCKET_BRIGHT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1e6
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    assert read_control("pocket-bright").model["name"] == "pocket" and find_control("pocket-bright") == POCKET_BRIGHT


def test_another_name_or_model_is_told_which_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert list(CONTROLS) == ["pocket-bright"]
    with pytest.raises(TiltingError, match=r"there is no control in 'pocket-brigth'.*did you mean 'pocket-bright'"):
        find_control("pocket-brigth")
    words = ("condition", "sample", "a fox", "--control", "pocket-bright", "--out", "out", "--label")
    assert "'bright' takes a finite number, not 'dark'" in refused(capsys, *words, "bright=dark")
    assert "knows a label 'brigth'; did you mean 'bright'?" in refused(capsys, *words, "brigth=40")
