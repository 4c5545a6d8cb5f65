"""field-methods, auto-table, field-objectives and bake: what competes, what a budget buys, and small runs of each."""

from __future__ import annotations

import json

import pytest

from support.commands import manifest
from tilting.cli import main
from tilting.objectives import OBJECTIVES
from tilting.presets import METHODS
from tilting_papers import RECIPES
from tilting_papers.draft.measure import protocol_of
from tilting_papers.draft.training import config_of, seconds_of
from tilting_papers.field import AUTO, REWARDS, RIVALS, Rival
from tilting_papers.field.bake import share
from tilting_papers.field.cells import mine, rows_of, spent
from tilting_papers.field.objectives import ARMS, MINUTES, STUDY
from tilting_papers.recipe import Run

pytestmark = pytest.mark.usefixtures("no_bars")


def of(recipe, out, small=True, shard=None):
    return Run(recipe, out, small, lambda line: None, shard=shard)


def test_every_method_and_objective_competes():
    assert {rival.method for rival in RIVALS} == set(METHODS) - {"base", "sdedit", "prompt"}
    assert set(ARMS) == set(OBJECTIVES)
    for rival in RIVALS:
        assert rival.gradient == METHODS[rival.method](**rival.settings).needs_reward_gradient
    assert {spec: asked.gradient for spec, asked in REWARDS.items()} == {"clip": True, "style": True, "jpeg": False}


def test_a_budget_is_spent_and_never_more():
    assert spent(Rival("bon", least=2), 100, 25) == 4 and spent(Rival("bon", least=2), 49, 25) is None
    assert spent(Rival("zo", "iterations", {"particles": 1}), 100, 25) == 3
    assert spent(Rival("lidar", "samples", least=2), 100, 25) == 25
    assert spent(Rival("reno", "iterations", least=2), 100, 25) == 2


def test_shards_are_stretches_that_make_the_cheapest_budgets_first(tmp_path):
    whole = rows_of(of(AUTO, tmp_path, small=False))
    parts = [mine(of(AUTO, tmp_path, False, (i, 5)), whole) for i in range(1, 6)]
    assert [row.name for part in parts for row in part] == [row.name for row in whole]
    assert [row.budget for row in whole] == sorted(row.budget for row in whole)


def test_arms_of_objectives_fit_into_their_minutes(tmp_path):
    run = of(STUDY, tmp_path, small=False)
    for one in STUDY.runs:
        config = config_of(one, STUDY.prompts, STUDY.reward, STUDY.size, False, tmp_path, 0)
        cores = 2  # what an estimate is of
        assert seconds_of(config, protocol_of(run)) * cores / 60 <= MINUTES, one.name


@pytest.mark.slow
def test_a_table_is_made_in_shards_and_says_what_is_missing(tmp_path):
    """Half of it, and then the rest: auto.json has cells that are measured only when every method of them is there."""
    out = tmp_path / "auto"
    assert main(["recipe", "auto-table", "--small", "--shard", "1/2", "--out", str(out), "--quiet"]) == 0
    half = json.loads((out / "auto.json").read_text())
    page = (out / "table.md").read_text()
    assert "**Not run yet**" in page and not all(cell["measured"] for cell in half["cells"])
    assert all(cell["method"] is None for cell in half["cells"] if not cell["measured"])
    assert main(["recipe", "auto-table", "--small", "--out", str(out), "--quiet"]) == 0
    whole = json.loads((out / "auto.json").read_text())
    assert all(cell["measured"] for cell in whole["cells"]) and "Not run yet" not in (out / "table.md").read_text()
    report = json.loads((out / "table.json").read_text())
    for row in report["rows"]:
        run = manifest(out / "runs" / row["name"])
        base = manifest(out / "runs" / f"{row['reward']}-{row['steps']}-base")
        apart = [a["reward"] - b["reward"] for a, b in zip(run["images"], base["images"], strict=True)]
        assert row["gain"] is None or row["gain"]["mean"] == pytest.approx(sum(apart) / len(apart), abs=1e-9)
        assert row["evaluations"] <= row["budget"]
    for cell in whole["cells"]:
        usable = [one for one in cell["ranked"] if one["usable"]]
        assert cell["method"] == (max(usable, key=lambda one: one["gain"])["method"] if usable else "base")


def test_the_share_of_a_gain_is_the_ratio_of_means():
    values = {"base": {}, "codex": {}, "baked": {}}
    for k in range(8):
        key = (0, f"p{k}", 0)
        values["base"][key], values["codex"][key], values["baked"][key] = float(k), k + 2.0 + 0.1 * (k % 2), k + 1.0
    found = share(values)
    assert found["mean"] == pytest.approx(8 / 16.4) and 0.45 < found["low"] < found["mean"] < found["high"] < 0.52


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bake", "field-objectives"])
def test_a_small_run(name, tmp_path):
    assert main(["recipe", name, "--small", "--out", str(tmp_path / name), "--quiet"]) == 0
    report = json.loads((tmp_path / name / "table.json").read_text())
    assert report["small"] and report["rows"] and RECIPES[name].about
    if name == "bake":
        rows = {row["name"]: row for row in report["rows"]}
        assert rows["baked"]["evaluations"] == rows["base"]["evaluations"] < rows["codex"]["evaluations"]
        assert "of CoDeX's gain" in (tmp_path / name / "table.md").read_text()
    else:
        assert {row["name"] for row in report["rows"]} == {"base", "draft-k", "nft"}
        assert all(row["evaluations"] and row["reward_calls"] for row in report["rows"][1:])
