"""Pages of docs/ that a command makes are what it makes; the index counts what the pages say."""

from __future__ import annotations

import importlib.util

import pytest

from support.paths import ROOT
from tilting.cli.reference import PAGES

spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks" / "claims.py")
assert spec and spec.loader
claims = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claims)


def test_the_index_of_the_pages_is_what_its_command_prints():
    assert (ROOT / "docs" / "README.md").read_text() == claims.index()
    for folder in (ROOT / "docs").glob("*/table.md"):
        assert f"({folder.parent.name}/table.md)" in claims.index()


def test_verdicts_are_counted_in_both_kinds_of_pages():
    lines = ("- **holds**: so", "- holds against b: 1", "- undecided: 0", "- the held-out judge falls", "- **fails**: no")
    page = "\n".join(["# x", *lines])
    assert claims.counted(page) == {"holds": 2, "undecided": 1, "fails": 2}
    assert not claims.counted("# x\n- holdsome words\nfails\n").total()


@pytest.mark.parametrize("file", PAGES)
def test_the_pages_of_what_is_declared_are_what_their_command_writes(file):
    assert (ROOT / "docs" / file).read_text() == PAGES[file]()
