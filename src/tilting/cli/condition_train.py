"""`tilting condition train`."""

from __future__ import annotations

from tilting.cli.command import Call, takes
from tilting.config.condition_train import TrainConfig


@takes(TrainConfig)
def train(config: TrainConfig, call: Call) -> None:
    """Train a control of labels. DIR gets control.json, lora/, embedding, classifiers/, metrics.jsonl, checkpoints/."""
    from tilting.conditioning.train_run import condition_train, describe

    manifest = condition_train(config, call.words, call.quiet)
    call.answer({**manifest["summary"], "call": manifest["call"]}, describe(manifest))
