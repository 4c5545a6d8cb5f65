"""The page that benchmarks/real_size.py makes says that it has seen no GPU."""

from __future__ import annotations

from support.paths import ROOT
from tilting.models.placement import SWITCHES


def test_the_page_says_that_no_gpu_has_been_seen_and_names_every_switch():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert "No line of tilting has run on a GPU yet" in page
    assert [name for name in SWITCHES if f"`--{name.replace('_', '-')}`" not in page] == []
