"""`tilting recipe NAME --small` makes the rows that an earlier version of the code made, tests/fixtures/recipes.

Of the recipes that take less than 25 seconds on one core, so many that all take less than three minutes: those that have a part
of their own. codex-table1, -table6, -fig7 and draft-fig10 are run by the tests of recipes, which see that the rows hold.
"""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest

from support.digits import closeness, differences, one_thread, read_table
from support.paths import ROOT
from tilting.cli import main

pytestmark = pytest.mark.usefixtures("undrawn_pages")

HERE = ROOT / "tests" / "fixtures" / "recipes"
RUN = (
    "mixture-bias",
    "ctrl-theory",
    "ctrl-table5",
    "codex-table3",
    "codex-table5",
    "codex-fig5",
    "draft-fig7",
    "draft-fig8",
    "draft-fig13",
    "draft-fig29",
    "draft-fig30",
    "draft-fig33",
    "draft-fig34",
)
IN_BYTES = ("ctrl-table5",)
"""Their labels are sizes of JPEG files: a pixel that other instructions round to the next byte moves them by more than 1e-3."""

CHOSEN = {"draft-fig7": "/claims/0/finding/difference/mean"}
"""Of the rise whose interval ends lowest, which was another one by the intervals of before."""
SHARED = ("codex-fig5",)
"""Two rewards of one CLIP, which is asked once today, and rounds otherwise: with a pass for each its digits are as before."""

single = pytest.fixture(one_thread)


@pytest.mark.parametrize("name", RUN)
def test_a_small_recipe_makes_the_rows_of_before(name, tmp_path, single, monkeypatch):
    before = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    close = closeness(before["made"])
    if name in IN_BYTES and close > 1e-6:
        pytest.skip("of bytes of files, which other instructions than those of the machine that made them change")
    if name in SHARED:
        monkeypatch.setattr("tilting.rewards.weighted_sum.once", nullcontext)
    assert main(["recipe", name, "--small", "--out", str(tmp_path / name), "--quiet"]) == 0
    found = read_table(tmp_path / name / "table.json")
    apart = differences(before["digits"], found, close)
    assert [line for line in apart if not line.startswith(CHOSEN.get(name, "-"))] == []
