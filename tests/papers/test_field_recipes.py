"""field-methods, auto-table, field-objectives and bake: what competes, what a budget buys, and small runs of each."""

from __future__ import annotations

import json

import pytest

from support.commands import manifest
from tilting.cli import main
from tilting.config import auto
from tilting.objectives import OBJECTIVES
from tilting.presets import METHODS
from tilting.rewards.declaration import REWARDS as REWARDS_OF
from tilting_papers import RECIPES
from tilting_papers.draft.measure import protocol_of
from tilting_papers.draft.training import config_of, seconds_of
from tilting_papers.field import AUTO, HELD, PROOF, REWARDS, RIVALS, Rival
from tilting_papers.field.bake import share
from tilting_papers.field.cells import mine, rows_of, spent
from tilting_papers.field.objectives import ARMS, MINUTES, STUDY
from tilting_papers.field.proof import Cell, compared
from tilting_papers.recipe import Run

pytestmark = pytest.mark.usefixtures("no_bars", "undrawn_pages")


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


def test_the_proof_draws_what_auto_takes_on_rewards_and_prompts_that_its_table_never_saw(tmp_path):
    assert not {spec.partition(":")[0] for spec in HELD} & set(REWARDS)
    assert not {p for one in HELD.values() for p in one.prompts} & {p for one in REWARDS.values() for p in one.prompts}
    assert all(REWARDS_OF.find(spec.partition(":")[0]).differentiable for spec, one in HELD.items() if one.gradient)
    rows = rows_of(of(PROOF, tmp_path, small=False))
    assert sum(row.minutes for row in rows) <= 60
    for reward, asked in HELD.items():
        for budget, steps in PROOF.budgets.items():
            taken = auto.choose(budget, steps, asked.gradient)
            (row,) = [one for one in rows if (one.reward, one.budget, one.method) == (reward, budget, taken.method)]
            given = {**dict(row.config.settings), f"{row.method}.particles": row.config.particles}
            assert row.config.steps == steps
            assert taken.settings == {key: given[f"{row.method}.{key}"] for key in taken.settings}


def test_auto_is_held_against_the_best_of_each_cell_and_against_each_that_is_always_taken():
    def values(*numbers):
        return {(0, f"p{k}", 0): float(number) for k, number in enumerate(numbers)}

    base, far, near = values(0, 2, 0, 2), values(3, 5, 3.1, 5.1), values(1, 3, 1.1, 3)
    flat = dict.fromkeys(("base", "far", "near"), base)
    rewards = {"base": base, "far": far, "near": near}
    first = Cell("r", 20, True, "near", rewards, flat)
    second = Cell("r", 50, True, "far", rewards, {**flat, "far": values(-1, 1, -1.1, 0.9)})
    found = compared([first, second])
    behind, best = found["cells"]
    assert (behind["best"], behind["gain"], behind["most"]) == ("far", pytest.approx(1.025), pytest.approx(3.05))
    assert behind["apart"]["mean"] == pytest.approx(-2.025) and behind["apart"]["high"] < 0
    assert (best["apart"], best["judge"]["mean"]) == (None, pytest.approx(-1.05)) and best["judge"]["high"] < 0
    assert [claim["finding"]["verdict"] for claim in found["claims"]] == ["fails", "fails"]
    assert "below in 1 of 2 cells; the best itself in 1; on average 1 " in found["claims"][0]["finding"]["found"]
    always = {row["method"]: row for row in found["always"]}
    assert always["auto"]["gain"] == pytest.approx((1.025 + 3.05) / 2)
    assert always["far"]["apart"]["mean"] == pytest.approx(-2.025 / 2) and always["base"]["apart"]["low"] > 0
    whole = compared([second])["claims"]
    assert whole[0]["finding"]["verdict"] == "holds" and compared([])["claims"][0]["finding"] is None


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
@pytest.mark.parametrize("name", ["bake", "field-objectives", "auto-proof"])
def test_a_small_run(name, tmp_path):
    assert main(["recipe", name, "--small", "--out", str(tmp_path / name), "--quiet"]) == 0
    report = json.loads((tmp_path / name / "table.json").read_text())
    assert report["small"] and report["rows"] and RECIPES[name].about
    if name == "bake":
        rows = {row["name"]: row for row in report["rows"]}
        assert rows["baked"]["evaluations"] == rows["base"]["evaluations"] < rows["codex"]["evaluations"]
        assert "of CoDeX's gain" in (tmp_path / name / "table.md").read_text()
    elif name == "auto-proof":
        assert {cell["reward"] for cell in report["cells"]} == {"symmetry", "jpeg-up"} and not report["missing"]
        assert "too few to say" in (tmp_path / name / "table.md").read_text()
    else:
        assert {row["name"] for row in report["rows"]} == {"base", "draft-k", "nft"}
        assert all(row["evaluations"] and row["reward_calls"] for row in report["rows"][1:])
