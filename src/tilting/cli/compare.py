"""`tilting compare`."""

from __future__ import annotations

from pathlib import Path

from tilting.cli.command import Call, takes
from tilting.config.compare import CompareConfig


@takes(CompareConfig)
def compare(config: CompareConfig, call: Call) -> None:
    """Draw the same prompts and noise by several methods. DIR gets compare.html, tables, figures, runs/."""
    from tilting.evaluation import compare as room

    metrics, folder = room.compare(config, call.words, call.quiet), Path(config.out or "")
    summary = {key: metrics[key] for key in ("reference", "methods")}
    call.answer(summary, room.describe(metrics), f"page: {folder / 'compare.html'}, picture: {folder / 'compare.png'}")
