"""Does steering work? The order that the mission promises, on 20 known prompts with paired seeds: one image of each where
that is plain, two of each for style."""

from __future__ import annotations

import importlib.util

import pytest

import tilting as tl
from support.paths import ROOT

spec = importlib.util.spec_from_file_location("ordering", ROOT / "benchmarks" / "ordering.py")
assert spec is not None
assert spec.loader is not None
ordering = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ordering)
STEPS = 12


@pytest.mark.parametrize(("name", "images"), [("clip", 1), ("style", 2)])
def test_codex_beats_code_beats_base(name, images):
    reward = getattr(tl.rewards, name)()
    presets = [tl.presets.base(), tl.presets.code(), tl.presets.codex()]
    out = ordering.compare(tl.load("pocket"), reward, presets, STEPS, ordering.PROMPTS, images=images)
    for pair in ("code - base", "codex - code"):
        mean, low, _ = out["differences"][pair]
        assert low > 0, f"{pair}: {out['differences'][pair]}"
        assert mean > 0


def test_code_with_jpeg_cuts_bytes():
    presets = [tl.presets.base(), tl.presets.code()]
    out = ordering.compare(tl.load("pocket"), tl.rewards.jpeg(), presets, STEPS, ordering.PROMPTS, images=1)
    assert out["differences"]["code - base"][1] > 0
