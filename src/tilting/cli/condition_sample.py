"""`tilting condition sample`."""

from __future__ import annotations

from pathlib import Path

from tilting.cli.command import Call, takes
from tilting.config.condition_sample import SampleConfig


@takes(SampleConfig)
def sample(config: SampleConfig, call: Call) -> None:
    """Draw images that obey labels. DIR gets images/, images.jsonl, grid.png, manifest.json, as of `tilting generate`."""
    from tilting.conditioning import sample_run as room

    manifest = room.condition_sample(config, call.words, call.quiet)
    said = room.describe(manifest, Path(config.out or ""), trained=bool(config.control))
    call.answer(manifest.get("summary", manifest.get("sweep")), said)
