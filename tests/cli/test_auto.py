"""`--method auto`: what it takes from the table of measured cells, what it says, and what it refuses."""

from __future__ import annotations

import json

import pytest

import tilting as tl
from support import tiny_pipelines
from support.commands import manifest
from tilting.cli import main
from tilting.config import auto
from tilting.errors import TiltingError
from tilting.generation.auto import take
from tilting.presets import METHODS

pytestmark = pytest.mark.usefixtures("no_bars")


def cell(budget, steps, gradient, method, knob="particles", measured=True, **settings):
    one = {"gain": 1.5, "usable": True, "number": {knob: 2}, "settings": settings}
    ranked = [] if method == "base" else [{"method": name, **one} for name in method.split()]
    about = {"budget": budget, "steps": steps, "gradient": gradient, "measured": measured, "ranked": ranked}
    return {**about, "method": method.split()[0]}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Cells in a file of the recipe's form."""

    def write(*cells):
        (tmp_path / "auto.json").write_text(json.dumps({"cells": cells}))
        monkeypatch.setattr(auto, "TABLE", tmp_path / "auto.json")
        auto.measured.cache_clear()

    yield write
    auto.measured.cache_clear()


def test_a_budget_takes_the_measured_cell_of_as_many_images_or_the_nearest_below(table):
    table(
        cell(20, 10, True, "tfg"),
        cell(100, 25, True, "codex"),
        cell(400, 25, True, "das", measured=False),
        cell(100, 25, False, "zo", "iterations", particles=1),
    )
    exact = auto.choose(100, 25, True)
    assert (exact.method, "nearest" in exact.why) == ("codex", False) and exact.cost.evaluations <= 100
    more = METHODS["codex"](particles=exact.settings["particles"] + 1).build(25)
    assert auto.cost(more, 25).evaluations > 100
    assert "the nearest measured below" in auto.choose(399, 25, True).why
    assert auto.choose(400, 25, True).method == "codex"  # what is better there has not been measured whole
    assert auto.choose(60, 25, True).method == "tfg" and auto.choose(20, 10, True).method == "tfg"
    climbing = auto.choose(130, 25, False)
    assert climbing.settings == {"particles": 1, "iterations": 4} and climbing.cost.evaluations == 125
    assert auto.choose(60, 25, False).method == "base"  # less than what was measured
    assert "less than 4 images" in auto.choose(60, 25, False).why


def test_where_no_method_was_usable_base_is_taken(table):
    table(cell(100, 25, True, "base"))
    assert auto.choose(100, 25, True).method == "base" and "judge" in auto.choose(100, 25, True).why


def test_what_cannot_be_is_a_sentence(table, tmp_path, capsys):
    table(cell(20, 10, True, "tfg"))
    out = str(tmp_path / "o")

    def said(*words: str) -> str:
        assert main(["generate", "a fox", "--method", "auto", *words, "--out", out]) == 2
        assert not (tmp_path / "o").exists()
        return capsys.readouterr().err

    assert "a budget of 20 evaluations is below the 25 steps of one image: give more, or --steps 20" in said("--budget", "20")
    assert "budget must be evaluations per image, such as 100, or seconds, such as 30s, not '3m'" in said("--budget", "3m")
    assert "method auto spends a budget: give --budget 100" in said()
    assert "leave eta out" in said("--budget", "100", "--eta", "0.5")
    (tmp_path / "same.py").write_text("def score(images, prompts):\n    return images.mean((1, 2, 3)) * 0 + 3\n")
    constant = said("--budget", "20", "--steps", "4", "--reward", f"{tmp_path}/same.py:score")
    assert "is 3 on all of 8 pictures that were looked at: auto has nothing to climb, so name a method" in constant
    assert main(["generate", "a fox", "--method", "code", "--budget", "100"]) == 2
    assert "budget is what method auto spends, and the method is code: leave it out" in capsys.readouterr().err


def test_a_run_says_what_it_took_and_goes_on_with_it(table, tmp_path, capsys):
    table(cell(8, 4, True, "bon"))
    out, words = tmp_path / "o", ["generate", "a fox", "--method", "auto", "--budget", "9", "--steps", "4", "--images", "2"]
    assert main([*words, "--out", str(out)]) == 0
    assert "auto: bon with particles 2 at T = 4, 8 evaluations an image" in capsys.readouterr().err
    first = manifest(out)
    assert (first["config"]["method"], first["config"]["particles"]) == ("bon", 2)
    assert first["auto"]["budget"] == "9" and first["summary"]["evaluations"] == 16 and "budget" not in first["config"]
    table(cell(8, 4, True, "code"))  # a later table: what was begun goes on as it was
    next((out / "images").glob("*1.png")).unlink()
    assert main([*words, "--out", str(out)]) == 0
    again = manifest(out)
    assert again["config"] == first["config"] and again["auto"] == first["auto"]
    assert [r["reward"] for r in again["images"]] == pytest.approx([r["reward"] for r in first["images"]], abs=1e-5)


def test_seconds_are_measured(table, monkeypatch):
    table(cell(8, 4, True, "bon"), cell(40, 4, True, "code"))
    model, reward = tl.load("pocket"), tl.rewards.clip()
    dear = take(model, reward, "1000s", 4, 4.0, ["a fox"])
    assert dear.method == "code" and "s an image here" in dear.why
    with pytest.raises(TiltingError, match=r"a budget of 0.001s is below the .* s that one image of 4 steps takes here"):
        take(model, reward, "0.001s", 4, 4.0, ["a fox"])
    monkeypatch.setattr("tilting.generation.auto._look", lambda *_: (1.0, 100.0))  # as of a big decoder
    table(cell(8, 4, True, "dps"), cell(8, 4, False, "bon"), cell(16, 4, False, "bon"))
    without = take(model, reward, "300s", 4, 4.0, ["a fox"])
    assert (without.method, without.settings) == ("bon", {"particles": 2}) and without.why.endswith("a gradient takes longer")
    assert take(model, reward, "9000s", 4, 4.0, ["a fox"]).method == "dps"


def test_what_cannot_steer_the_model_is_passed_over_and_named(table):
    """A scale that is no correction, a step that leaves nothing to select, gradients that do not fit."""
    table(cell(8, 4, True, "codex dps"), cell(8, 4, False, "rbf bon"))
    model, clip = tl.load("pocket"), tl.rewards.clip()
    plain = take(model, clip, "8", 4, 1.0, ["a fox"])
    assert plain.method == "dps" and "; not codex, for codex scales" in plain.why
    few = take(model, tl.rewards.jpeg(), "2", 1, 4.0, ["a fox"])
    assert few.method == "bon" and few.why.endswith("; not rbf, for it never selects in 1 step")

    def fits(method, settings):
        return f"{method} takes 9 GB: give more" if METHODS[method](**settings).needs_reward_gradient else None

    narrow = take(model, clip, "8", 4, 4.0, ["a fox"], fits)
    assert narrow.method == "rbf" and narrow.why.endswith("; not codex, for codex takes 9 GB; not dps, for dps takes 9 GB")
    nothing = take(model, clip, "8", 4, 4.0, ["a fox"], lambda method, settings: "no")
    assert nothing.method == "base" and "no method of the table can be used here; not codex, for no; not dps" in nothing.why
    flow = take(tl.load(tiny_pipelines.sd3()[0]), tl.rewards.jpeg(), "8", 4, 1.0, ["a fox"])
    assert flow.method == "rbf" and flow.why.endswith("the table is of pocket, this is a flow model")


@pytest.mark.slow
def test_of_a_memory_what_fits_is_taken_and_loaded_as_it_was_fitted(table, tmp_path, capsys):
    table(cell(8, 4, True, "dps"), cell(8, 4, False, "bon"))
    words = ["--reward", "clip", "--method", "auto", "--budget", "8", "--steps", "4", "--memory", "1055MB"]
    assert main(["generate", "a fox", *words, "--out", str(tmp_path / "o")]) == 0
    told = capsys.readouterr().err
    assert "auto: bon with particles 2" in told and "not dps, for 'pocket' with dps takes 1.06 GB" in told
    assert manifest(tmp_path / "o")["config"]["offload"] == "network"


def test_the_shipped_table_is_the_recipes_and_every_cell_of_it_can_be_taken():
    """Every measured cell, at its own budget and at twice as much of another T."""
    auto.measured.cache_clear()
    shipped = json.loads(auto.TABLE.read_bytes())
    assert shipped["recipe"] == "auto-table" and shipped["small"] is False
    for one in auto.measured():
        choice = auto.choose(one["budget"], one["steps"], one["gradient"])
        assert choice.method == one["method"] and choice.cost.evaluations <= one["budget"]
        assert auto.choose(one["budget"] * 2, one["steps"], one["gradient"]).cost.evaluations <= 2 * one["budget"]


def test_from_python():
    result = tl.generate(tl.load("pocket"), "a fox", "clip", "auto", steps=10, budget=20, progress=False)
    assert result.manifest["summary"]["evaluations"] <= 20 and result.config.method == auto.choose(20, 10, True).method
    with pytest.raises(TiltingError, match="give both"):
        tl.generate(tl.load("pocket"), "a fox", "clip", "code", budget=100, progress=False)
