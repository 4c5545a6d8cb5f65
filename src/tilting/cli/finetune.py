"""`tilting finetune`."""

from __future__ import annotations

from tilting.cli.command import Call, takes
from tilting.config.finetune import FinetuneConfig


@takes(FinetuneConfig)
def finetune(config: FinetuneConfig, call: Call) -> None:
    """Train a LoRA on a reward. DIR gets lora/, finetune.html, curve.png, samples/, checkpoints/, manifest.json."""
    from tilting.evaluation import tuned_page as room

    manifest, told = room.finetune(config, call.words, call.quiet)
    call.answer({**manifest["summary"], "call": manifest["call"]}, *told)
