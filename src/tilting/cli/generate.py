"""`tilting generate`."""

from __future__ import annotations

from pathlib import Path

from tilting.cli.command import Call, takes
from tilting.config.generate import GenerateConfig
from tilting.generation.run import describe, run
from tilting.runs.files import GRID


@takes(GenerateConfig)
def generate(config: GenerateConfig, call: Call) -> None:
    """Draw images of prompts with a method and a reward. DIR gets images/, images.jsonl, grid.png, manifest.json."""
    manifest = run(config, call.words, call.quiet)
    grid = Path(config.out or "") / GRID
    told = [f"grid: {grid}"] if grid.exists() else []
    call.answer({**manifest["summary"], "call": manifest["call"]}, describe(manifest), *told)
