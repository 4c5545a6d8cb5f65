"""`tilting doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import Doc

from tilting.cli.command import Call, takes
from tilting.config.finetune import FinetuneConfig
from tilting.config.options import Out
from tilting.errors import TiltingError


@dataclass(frozen=True)
class DoctorConfig(FinetuneConfig):
    """A run to examine."""

    hidden = ("full",)

    out: Annotated[Out, Doc("Of the run; doctor writes nothing.")] = None
    full: Annotated[bool, Doc("A whole batch, and one training step.")] = False


@takes(DoctorConfig, writes=False)
def doctor(config: DoctorConfig, call: Call) -> None:
    """Examine a fine-tuning run before it is made. Arithmetic, memory, gradients, ratios; takes the options of finetune."""
    from tilting.training.doctor import doctor as examine
    from tilting.training.doctor import lines

    found = examine(config, config.full)
    call.answer(found, *lines(found, config))
    failed = [f"{name}: {check['line']}" for name, check in found["checks"].items() if not check["ok"]]
    if failed:
        raise TiltingError(f"a check failed, {failed[0]}")
