"""The lowest versions that are tried are those that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib

from support.paths import ROOT


def test_the_lowest_versions_are_those_that_are_allowed():
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    least = dict(re.match(r"([\w-]+)>=([\d.]+)", need).groups() for need in needs)
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    asked = {"diffusers", "transformers", "peft", "accelerate", "huggingface_hub", "safetensors"}
    assert asked <= set(tried)
    assert all(tried[name].removesuffix(".0") == least[name] for name in asked)
