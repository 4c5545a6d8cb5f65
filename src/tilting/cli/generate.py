"""`tilting generate`."""

from __future__ import annotations

from pathlib import Path

from tilting.cli.command import Call, takes
from tilting.config.generate import GenerateConfig
from tilting.generation.run import describe, run
from tilting.runs.files import GRID


@takes(GenerateConfig)
def generate(config: GenerateConfig, call: Call) -> None:
    """Draw images of prompts with a method and a reward. DIR gets images/, grid.png, manifest.json."""
    manifest = run(config, call.words, call.quiet)
    call.answer(
        {**manifest["summary"], "call": manifest["call"]}, describe(manifest), f"grid: {Path(config.out or '') / 'grid.png'}"
    )
