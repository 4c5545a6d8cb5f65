"""`tilting finetune`."""

from __future__ import annotations

import typer

from tilting.cli import options as given_by
from tilting.cli.finetune_options import takes
from tilting.cli.request import Request
from tilting.config.finetune import OPTIONS, resolve_finetune


@takes
def finetune(context: typer.Context, print_config: given_by.PrintConfig = False) -> None:
    """Train a LoRA on a reward. DIR gets lora/, checkpoints/, samples/, metrics.jsonl, manifest.json."""
    request = Request.of(context, OPTIONS)
    resolved = resolve_finetune(request.options)
    if request.only_prints(resolved):
        return
    request.tell(resolved.unused)
    from tilting.training.run import describe, run

    manifest = run(resolved, request.words, request.quiet)
    request.answer(manifest["summary"], describe(manifest))
