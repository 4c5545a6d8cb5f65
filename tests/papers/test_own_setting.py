"""Recipes on a researcher's own model, reward, prompts, seeds and steps: what is made, and what a page does not say of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from support.small import write_small
from support.tiny_pipelines import make
from tilting.errors import TiltingError
from tilting_papers import RECIPES
from tilting_papers.draft.study import Size, Training
from tilting_papers.field import METHODS, PROOF, Rival
from tilting_papers.field.cells import name_of
from tilting_papers.field.objectives import STUDY

pytestmark = pytest.mark.usefixtures("no_bars", "undrawn_pages")

REWARDS = """
def bright(images, prompts):
    return images.mean((1, 2, 3))

def black(images, prompts):
    return images.mean((1, 2, 3)).round(decimals=3)

black.differentiable = False
"""
ALL = ("model", "reward", "prompts", "seeds", "steps")
FEW = replace(METHODS, rivals=(Rival("bon", least=2, small=True), Rival("dps", gradient=True, small=True)))
TUNED = replace(
    STUDY,
    runs=(Training("draft-k", "draft-k", k=1), Training("ddpo", "ddpo")),
    tiny=Size(steps=2, train_steps=1, batch=2, images=1, evaluations=1),
)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    """Tiny models of three families by name, and a file of rewards."""
    root = tmp_path_factory.mktemp("bodies")
    (root / "my.py").write_text(REWARDS)
    write_small(root / "sd15")
    for name in ("sd3", "flux"):
        make(name)[0].save_pretrained(root / name)
    return root


def made(recipe, out, **asked):
    report = recipe.run(out, True, lambda line: None, asked=asked)
    return report, (out / "table.md").read_text()


@pytest.mark.parametrize("body", ["sd15", "sd3", "flux"])
def test_methods_on_ones_own_model(body, bodies, tmp_path):
    model, rewards = str(bodies / body), [f"{bodies / 'my.py'}:{name}" for name in ("bright", "black")]
    asked = {"model": model, "reward": rewards, "prompts": ["a b", "c d", "e f"], "seeds": [4, 5], "steps": 3}
    report, page = made(FEW, tmp_path / "out", **asked)
    rows = {(row["reward"].rpartition(":")[2], row["method"]): row for row in report["rows"]}
    assert set(rows) == {("bright", "base"), ("bright", "bon"), ("bright", "dps"), ("black", "base"), ("black", "bon")}
    assert all(row["judge"] is None and row["steps"] == 3 and row["evaluations"] <= 6 for row in rows.values())
    part = json.loads((tmp_path / "out" / "parts" / f"{rows['bright', 'dps']['name']}.json").read_text())
    assert (part["config"]["model"], part["config"]["seed"], len(part["images"])) == (model, [4, 5], 4)
    for said in (
        f"Ours: {model}",
        "seed 4, 5",
        "T = 3",
        "my.py:bright",
        "not run on my.py:black",
        "a b; c d; e f",
        "6 evaluations",
    ):
        assert said in page, said
    assert "pocket" not in page and "judge -" not in page and f"No setting was tuned on {model}" in page


def test_auto_beside_single_methods_on_ones_own_model(bodies, tmp_path):
    few = replace(PROOF, rivals=(Rival("bon", least=2, small=True), Rival("rbf", least=2, small=True)))
    report, page = made(few, tmp_path / "out", model=str(bodies / "sd15"), reward=[f"{bodies / 'my.py'}:black"], steps=2)
    assert [cell["judge"] for cell in report["cells"]] == [None] and [claim["text"] for claim in report["claims"]] == [
        "auto is nowhere below the best single method of its cost"
    ]
    assert "black" in page


def test_objectives_on_ones_own_model_and_a_black_box(bodies, tmp_path):
    asked = {"model": str(bodies / "sd15"), "prompts": ["a", "b", "c", "d", "e", "f"], "seeds": [7, 9]}
    report, page = made(TUNED, tmp_path / "out", reward=[f"{bodies / 'my.py'}:black"], **asked)
    assert [row["name"] for row in report["rows"]] == ["base", "ddpo"] and report["rows"][1]["seeds"] == 2
    assert report["sets"] == {"train": ["a", "b", "c", "d"], "held-out": ["e", "f"]} and report["prompts"] == ["a", "b"]
    assert {path.name for path in (tmp_path / "out" / "runs").iterdir()} == {"ddpo", "ddpo.s1"}
    seeds = [json.loads((tmp_path / "out" / "parts" / f"{n}.json").read_text())["config"]["seed"] for n in ("ddpo", "ddpo.s1")]
    assert seeds == [7, 9]
    again = made(TUNED, tmp_path / "out", reward=[f"{bodies / 'my.py'}:black"], **asked)
    assert again == (report, page)
    for said in ("seed 7, 9", "Left out, for they need a gradient", "draft-k", "two thirds", "my.py:black"):
        assert said in page, said
    assert "pocket" not in page and "judge (log p)" not in page and "apart" not in page.partition("## How")[0]
    with pytest.raises(TiltingError, match="every run of draft-fig28 needs a gradient"):
        made(RECIPES["draft-fig28"], tmp_path / "no", reward=[f"{bodies / 'my.py'}:black"])


def test_baking_on_ones_own_model(bodies, tmp_path):
    asked = {"model": str(bodies / "sd15"), "prompts": ["a", "b", "c"], "seeds": [3], "steps": 2}
    report, page = made(RECIPES["bake"], tmp_path / "out", reward=[f"{bodies / 'my.py'}:bright"], **asked)
    assert report["prompts"] == [2, 1] and report["steps"] == 2 and [row["judge"] for row in report["rows"]] == [None] * 3
    for said in ("seed 3", "T = 2", "my.py:bright", "two thirds", f"Ours: {bodies / 'sd15'}"):
        assert said in page, said
    assert "judge - base" not in page and "Ours: pocket" not in page


def test_which_recipe_takes_what():
    takes = {name: recipe.asks for name, recipe in RECIPES.items()}
    for name in (
        "field-methods",
        "auto-table",
        "auto-proof",
        "field-objectives",
        "bake",
        "codex-table1",
        "draft-fig3",
        "draft-fig4",
    ):
        assert takes[name] == ALL, name
    assert takes["draft-fig7"] == ALL[2:]  # it mixes LoRAs of two rewards of its own
    for name in ("codex-strengths-clip", "draft-fig29", "draft-fig30"):  # of the judge, which pocket alone has
        assert takes[name] == ALL[1:], name
    assert takes["ctrl-table2"] == ("prompts", "steps") and takes["mixture-bias"] == ()


def test_what_is_pockets_is_not_said_of_another_model():
    for name in ("codex-table2", "codex-table3", "draft-fig4"):
        own = RECIPES[name].otherwise({"model": "org/model"})
        assert not (own.published and own.published[0]) and not any("codex-strengths" in note for note in own.notes)
        assert own.notes[-1].startswith("No setting was tuned on org/model") and getattr(own, "tuned", None) is None
    kept, other = RECIPES["draft-fig4"], RECIPES["draft-fig4"].otherwise({"model": "org/model"})
    assert len(other.claims) == len(kept.claims) - 1
    assert RECIPES["codex-table2"].otherwise({"steps": 7}).tuned is not None
    with pytest.raises(TiltingError, match="at least 2 prompts"):
        kept.otherwise({"prompts": ["a fox"]})


def test_budgets_buy_as_many_images_at_other_steps():
    assert METHODS.otherwise({"steps": 50}).budgets == {200: 50}
    assert "at 200 evaluations" in METHODS.otherwise({"steps": 50}).title and "at 100" in METHODS.title


def test_rows_are_named_by_any_reward():
    assert name_of("clip", 25, "base") == "clip-25-base" and name_of("color:orange", 20, "bon") == "color-orange-20-bon"
    odd = [name_of(spec, 1, "m") for spec in ("/x/my.py:f", "/y/my.py:f", "http://h:1/a?b=c", "clip=2")]
    assert len(set(odd)) == 4 and all("/" not in one and ":" not in one for one in odd)
