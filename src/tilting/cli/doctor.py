"""`tilting doctor`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tilting.cli import finetune_options as its
from tilting.errors import TiltingError


@its.takes
def doctor(
    given: dict[str, Any], full: Annotated[bool, typer.Option("--full", help="A whole batch, and one training step.")] = False
) -> None:
    """Examine a fine-tuning run before it is made: arithmetic, memory, gradients, ratios. Takes the options of finetune."""
    options, resolved = its.collect(given)
    from tilting.experiments.doctor import doctor as examine
    from tilting.experiments.doctor import lines

    found = examine(resolved, full)
    if options.get("json"):
        typer.echo(json.dumps(found))
    elif not options.get("quiet"):
        for line in lines(found, resolved):
            typer.echo(line)
    failed = [f"{name}: {check['line']}" for name, check in found["checks"].items() if not check["ok"]]
    if failed:
        raise TiltingError(f"a check failed, {failed[0]}")
