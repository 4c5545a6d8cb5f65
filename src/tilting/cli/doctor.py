"""`tilting doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from typing_extensions import Doc

from tilting.cli.command import Call, takes
from tilting.config.finetune import FinetuneConfig
from tilting.config.generate import GenerateConfig
from tilting.config.options import Out, Particles
from tilting.declare import Metavar, Option
from tilting.errors import TiltingError

ONE = ("a fox",)
"""The prompt of a count, where none is given."""


@dataclass(frozen=True)
class DoctorConfig(FinetuneConfig):
    """A run to examine; with a method, of `tilting generate`, which ``generation`` is."""

    hidden = ("full", "size", "method", "particles")

    out: Annotated[Out, Doc("Folder of the run; doctor writes nothing.")] = None
    full: Annotated[bool, Doc("Try a whole batch, and one training step.")] = False
    size: Annotated[bool, Doc("Only count TFLOP and bytes by part, and what fits into 8 to 80 GB; no weights are read.")] = (
        False
    )
    method: Annotated[str | None, Metavar("NAME"), Doc("A method of `tilting generate` instead of an objective.")] = None
    particles: Annotated[Particles, Doc("N, particles per image of a method.")] = None
    generation: Annotated[GenerateConfig | None, Option(internal=True), Doc("The run of a method.")] = None

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Fill in defaults and refuse what cannot work; see `FinetuneConfig.resolve` and `GenerateConfig.resolve`."""
        counts = options.get("size") or options.get("method")
        asked = {**options, "prompts": options.get("prompts") or (ONE if counts else ())}
        if options.get("method") is None:
            return super().resolve(asked)
        if options.get("objective"):
            raise TiltingError("a run has a method or an objective: give one of --method and --objective")
        cls.checked(asked)
        known = GenerateConfig.options()
        run = GenerateConfig.resolve({name: value for name, value in asked.items() if name.replace("_", "-") in known})
        shared = {one.name: getattr(run, one.name) for one in fields(cls) if hasattr(run, one.name) and one.name != "settings"}
        return cls(**{**shared, "precision": run.precision or cls.precision, "generation": run, "size": True})


@takes(DoctorConfig, writes=False)
def doctor(config: DoctorConfig, call: Call) -> None:
    """Examine a run before it is made. Arithmetic, memory, gradients, ratios of a fine-tuning; what a method costs."""
    from tilting.training import doctor as home
    from tilting.training import size

    if config.size:
        run = config.generation or config
        found = size.counted(run)
        return call.answer(found, *size.lines(found, run))
    found = home.doctor(config, config.full)
    call.answer(found, *home.lines(found, config))
    failed = [f"{name}: {check['line']}" for name, check in found["checks"].items() if not check["ok"]]
    if failed:
        raise TiltingError(f"a check failed, {failed[0]}")
