"""`tilting doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from tilting.cli.finetune_options import takes
from tilting.cli.request import Request
from tilting.errors import TiltingError
from tilting.experiments.finetune.config import OPTIONS, resolve_finetune


@takes
def doctor(
    context: typer.Context,
    full: Annotated[bool, typer.Option("--full", help="A whole batch, and one training step.")] = False,
) -> None:
    """Examine a fine-tuning run before it is made. Arithmetic, memory, gradients, ratios; takes the options of finetune."""
    request = Request.of(context, OPTIONS, full=None)
    resolved = resolve_finetune(request.options)
    from tilting.experiments.doctor import doctor as examine
    from tilting.experiments.doctor import lines

    found = examine(resolved, full)
    request.answer(found, *lines(found, resolved))
    failed = [f"{name}: {check['line']}" for name, check in found["checks"].items() if not check["ok"]]
    if failed:
        raise TiltingError(f"a check failed, {failed[0]}")
