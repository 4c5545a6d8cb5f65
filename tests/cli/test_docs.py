"""docs/README.md is what its command prints, and counts what the pages say."""

from __future__ import annotations

import importlib.util

from support.paths import ROOT

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
