"""`tilting finetune`."""

from __future__ import annotations

import json
from typing import Any

import typer

from tilting.cli import finetune_options as its
from tilting.cli import options as given_by
from tilting.errors import TiltingError


@its.takes
def finetune(given: dict[str, Any], context: typer.Context, print_config: given_by.PrintConfig = False) -> None:
    """Train a LoRA on a reward into DIR: lora/, checkpoints/, samples/, metrics.jsonl, manifest.json."""
    options, resolved = its.collect(given)
    if print_config:
        return typer.echo(resolved.yaml(), nl=False)
    if resolved.out is None:
        raise TiltingError("say where to write: --out DIR")
    from tilting.experiments.finetune.run import describe, run

    silent = bool(options.get("quiet"))
    manifest = run(resolved, ["tilting", *context.obj], quiet=silent)
    if options.get("json"):
        typer.echo(json.dumps(manifest["summary"]))
    elif not silent:
        typer.echo(describe(manifest))
