"""`tilting condition fit`."""

from __future__ import annotations

from tilting.cli.command import Call, takes
from tilting.config.condition_fit import FitConfig


@takes(FitConfig)
def fit(config: FitConfig, call: Call) -> None:
    """Fit calibrated classifiers p(y|x) of labels. DIR gets the classifiers, metrics.json, reliability.png, confusion.png."""
    from tilting.conditioning import fit_run as room

    manifest = room.condition_fit(config, call.words, call.quiet)
    labels = manifest["labels"]
    folders = [f"{config.out}/{label}" for label in labels] if len(labels) > 1 else [str(config.out)]
    call.answer(manifest["summary"], room.describe(manifest), f"classifier: {' '.join(folders)}")
