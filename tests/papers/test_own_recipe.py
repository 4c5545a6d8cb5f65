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
