"""A recipe of someone else's package: one file and one line of its metadata, and the command line knows it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from support.outside import installed
from tilting.cli import main
from tilting.config.recipe import RECIPES as KNOWN
from tilting_papers import RECIPES
from tilting_papers.codex.draw import Requests

FILE = """
from tilting_papers.page import claimed
from tilting_papers.recipe import Recipe, Run


def measure(run: Run):
    run.say("measuring")
    rows = [{"name": "a", "squares": float(sum(i * i for i in range(run.seed, 2 if run.small else 5)))}]
    return {"rows": rows, "claims": [claimed("squares add up", "they do", {"verdict": "holds", "found": "30"})]}


RECIPES = {"mine": Recipe(name="mine", about="sums of squares", paper="Someone, 2026", measure=measure, notes=("a note",))}
"""


@pytest.fixture
def outside(tmp_path):
    """The file, and the metadata that installing its package writes."""
    with installed(KNOWN, tmp_path / "site", "own_recipe", FILE, "own_recipe:RECIPES"):
        yield tmp_path


def test_a_recipe_from_outside_is_listed_made_and_resumed(outside, capsys):
    assert main(["recipe", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["mine"] == {"about": "sums of squares", "paper": "Someone, 2026"} and set(RECIPES) < set(listed)
    out = outside / "out"
    assert main(["recipe", "mine", "--out", str(out), "--seed", "1"]) == 0
    page, progress = capsys.readouterr()
    assert "| a | 30 |" in page and "**holds**: squares add up" in page and "- a note" in page and "mine: measuring" in progress
    report = json.loads((out / "table.json").read_text())
    about = {"recipe": "mine", "title": "sums of squares", "paper": "Someone, 2026", "seed": 1}
    assert {key: report[key] for key in about} == about
    assert main(["recipe", "mine", "--out", str(out), "--seed", "1", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert main(["recipe", "mine", "--out", str(out), "--small", "--seed", "1"]) == 2
    assert "another small" in capsys.readouterr().err
    assert main(["recipe", "mine", "--out", "X", "--print-config"]) == 0
    unset = {"recipe": "mine", "out": "X", "small": False, "seed": 0, "shard": None}
    assert yaml.safe_load(capsys.readouterr().out) == unset
    assert main(["recipe", "min", "--out", "X"]) == 2
    assert "did you mean 'mine'" in capsys.readouterr().err


def test_declarations_load_neither_torch_nor_matplotlib():
    code = "import sys, tilting_papers; print(*{'torch', 'matplotlib', 'diffusers', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_every_recipe_is_called_by_its_own_name():
    assert all(recipe.name == name and recipe.about and recipe.paper for name, recipe in RECIPES.items())


def test_a_small_run_says_no_verdict_and_what_is_not_asked_is_refused(outside, capsys):
    out = str(outside / "small")
    assert main(["recipe", "mine", "--out", out, "--small", "--quiet"]) == 0
    page = (outside / "small" / "table.md").read_text()
    assert "**too few to say**: squares add up" in page and "holds" not in page
    assert main(["recipe", "mine", "--out", out, "--small", "--steps", "3"]) == 2
    assert "the recipe mine has no use for --steps: it is as it is" in capsys.readouterr().err


def test_a_table_on_ones_own_setting(tmp_path, capsys):
    """Rows are requested with it, the published column stays; another setting is another folder."""
    (tmp_path / "p.txt").write_text("a fox\n\na cat\n")
    words = ["--prompts", str(tmp_path / "p.txt"), "--reward", "style:noto", "--seeds", "4,5", "--steps", "7"]
    assert main(["recipe", "codex-table3", "--out", "X", *words, "--print-config"]) == 0
    asked = yaml.safe_load(capsys.readouterr().out)
    assert asked == {
        **{"recipe": "codex-table3", "out": "X", "small": False, "shard": None},
        **{"reward": ["style:noto"], "prompts": ["a fox", "a cat"], "seeds": [4, 5], "steps": 7},
    }
    given = {key: asked[key] for key in ("reward", "prompts", "seeds", "steps")}
    table = RECIPES["codex-table3"].otherwise(given)
    assert table.published == RECIPES["codex-table3"].published and [r.name for r in table.rows] == [
        r.name for r in RECIPES["codex-table3"].rows
    ]
    tuned = next(one for one in RECIPES.values() if getattr(one, "tuned", None))
    again = tuned.otherwise({"steps": 7, "prompts": ["a fox"]})
    assert (again.size.steps, again.tuned.size.steps, again.prompts) == (
        7,
        7,
        ("a fox",),
    ) and again.tuned.prompts == tuned.tuned.prompts
    requests = Requests(table, tmp_path, small=False, seed=0)
    row = requests.row(table.rows[1], [])[0]
    assert (row.prompts, row.reward, row.seed, row.steps) == (("a fox", "a cat"), ("style:noto",), (4, 5), 7)
    assert requests.reference().seed == (6, 7) and list(table.units) == ["style:noto"]
    for name, more, said in (
        ("codex-fig5", ["--reward", "clip"], "rewards of their own"),
        ("draft-fig13", ["--model", "pocket"], "it takes --seeds, --steps"),
        ("ctrl-table2", ["--reward", "clip"], "it takes --prompts, --steps"),
        ("codex-table3", ["--seed", "1"], "by --seed and by --seeds"),
    ):
        assert main(["recipe", name, "--out", str(tmp_path / "no"), *([] if name != "codex-table3" else words), *more]) == 2
        assert said in capsys.readouterr().err
    before = {"recipe": "codex-table3", "small": True, "seed": 0, "asked": given}
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "table.json").write_text(json.dumps(before))
    assert main(["recipe", "codex-table3", "--out", str(tmp_path / "made"), "--small"]) == 2
    assert "of another setting" in capsys.readouterr().err
