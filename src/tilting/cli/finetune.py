"""`tilting finetune`."""

from __future__ import annotations

from tilting.cli.command import Call, takes
from tilting.config.finetune import FinetuneConfig


@takes(FinetuneConfig)
def finetune(config: FinetuneConfig, call: Call) -> None:
    """Train a LoRA on a reward. DIR gets lora/, checkpoints/, samples/, metrics.jsonl, manifest.json."""
    from tilting.training.run import describe, run

    manifest = run(config, call.words, call.quiet)
    call.answer(manifest["summary"], describe(manifest))
