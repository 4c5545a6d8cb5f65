"""`tilting doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from tilting.cli import options as given_by
from tilting.cli.finetune_options import takes
from tilting.cli.request import Request
from tilting.config.finetune import OPTIONS, resolve_finetune
from tilting.config.settings import boolean
from tilting.errors import TiltingError


@takes
def doctor(
    context: typer.Context,
    out: Annotated[given_by.Text, given_by.option("--out", metavar="DIR", help="Of the run; doctor writes nothing.")] = None,
    print_config: given_by.PrintConfig = False,
    full: Annotated[bool, typer.Option("--full", help="A whole batch, and one training step.")] = False,
) -> None:
    """Examine a fine-tuning run before it is made. Arithmetic, memory, gradients, ratios; takes the options of finetune."""
    request = Request.of(context, (*OPTIONS, "full"), full=full or None)
    full = boolean("full", request.options.pop("full", False))
    resolved = resolve_finetune(request.options)
    if request.only_prints(resolved, writes=False):
        return
    from tilting.training.doctor import doctor as examine
    from tilting.training.doctor import lines

    found = examine(resolved, full)
    request.answer(found, *lines(found, resolved))
    failed = [f"{name}: {check['line']}" for name, check in found["checks"].items() if not check["ok"]]
    if failed:
        raise TiltingError(f"a check failed, {failed[0]}")
