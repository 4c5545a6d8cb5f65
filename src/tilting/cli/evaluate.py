"""`tilting evaluate`."""

from __future__ import annotations

from pathlib import Path

from tilting.cli.command import Call, takes
from tilting.config.evaluate import EvaluateConfig


@takes(EvaluateConfig)
def evaluate(config: EvaluateConfig, call: Call) -> None:
    """Measure what runs gained, and whether they gamed the reward. Judges, diversity, labels, distances and their floor."""
    from tilting.evaluation import run as room

    metrics = room.evaluate(config, call.words, call.quiet)
    summary = {key: metrics[key] for key in ("reference", "floor", "extractors")} | {"runs": metrics["summary"]}
    call.answer(summary, room.describe(metrics), f"report: {Path(config.out or '') / 'report.html'}")
