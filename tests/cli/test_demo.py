"""`make demo`: what it draws, and what it says of it."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from support.paths import ROOT
from tilting.cli import demo


@pytest.mark.slow
def test_the_demo_draws_its_grids_says_what_they_show_and_goes_on(tmp_path, capsys):
    words = demo.demo(tmp_path, ["a fox"], images=1, steps=2, quiet=True)
    assert (tmp_path / "table.txt").read_text() == f"{words}\n"
    for name in ("grid.png", "grid-jpeg.png", "grid-warm.png", "foxes.png"):
        Image.open(tmp_path / name).verify()
    lines = words.splitlines()
    (base,) = (line for line in lines if re.match(r"base +brightness \d+\.\d, judge -\d", line))
    asked = [
        line
        for line in lines
        if re.match(r"bright=\d+ +brightness \d+\.\d, bright [\d.]+ for \d+ \(base [\d.]+\), KL .*judge .*base -\d", line)
    ]
    assert len(asked) == len(demo.BRIGHTNESSES) and base
    stands = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/images/*.png")}
    assert demo.demo(tmp_path, ["a fox"], images=1, steps=2, quiet=True) == words
    assert len(stands) == 13 and stands == {path: path.stat().st_mtime_ns for path in stands}


def test_the_function_that_labelled_is_the_one_of_the_demo():
    assert (ROOT / "training" / "pocket-bright" / "bright.py").read_text() == demo.BRIGHT
