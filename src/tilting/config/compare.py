"""The options of `tilting compare`, validated: those of `tilting generate`, for several methods.

All methods have the same number of steps, so that their images pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self

from typing_extensions import Doc

from tilting.config.condition_sample import SampleConfig
from tilting.config.generate import GenerateConfig
from tilting.config.settings import setting
from tilting.config.variants import parse_variants, swept
from tilting.declare import Check, Field, Metavar, Option
from tilting.errors import TiltingError

DEFAULT = ("base", "bon", "code", "codex")
"""The methods if none are named."""
COLUMNS = "See `tilting methods`; codex:strength=0.4 with a setting (+ joins several), lora:DIR, control:DIR:LABEL=VALUE."


def _methods(name: str, value: tuple[str, ...]) -> tuple[str, ...]:
    """Columns from a list, or from texts with commas."""
    return tuple(variant.label for variant in parse_variants(value))


def _sweep(name: str, value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        swept(one)
    return value


@dataclass(frozen=True)
class CompareConfig(GenerateConfig):
    """A validated request: the fields of the first run, except particles, eta and settings, which are as given.

    Attributes:
        runs: the request of each method, into DIR/runs/METHOD.
        unused: options that no method uses.
    """

    methods: Annotated[
        tuple[str, ...], Metavar("A,B,..."), Option(default=",".join(DEFAULT)), Check(_methods), Doc(COLUMNS)
    ] = DEFAULT
    sweep: Annotated[
        tuple[str, ...], Metavar("METHOD.FIELD=A,B,..."), Check(_sweep), Doc("Columns of several values, repeatable; a curve.")
    ] = ()
    runs: Annotated[tuple[GenerateConfig, ...], Option(internal=True), Doc("What each method is to draw.")] = ()

    @classmethod
    def options(cls) -> dict[str, Field]:
        return {name: one for name, one in super().options().items() if name not in ("method", "published", "budget")}

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Check a request, before torch is imported.

        Args:
            options: by option name, as `tilting.config.generate.GenerateConfig` has them, and ``methods``.

        Raises:
            TiltingError: one sentence that names the option, or the method that cannot be run so.
        """
        given = cls.checked({"prompts": (), **options})
        sweep = given.pop("sweep", ())
        texts = (*given.pop("methods", ("base",) if sweep else DEFAULT), *(column for one in sweep for column in swept(one)))
        columns, out = parse_variants(tuple(dict.fromkeys(texts))), given.pop("out", None)
        methods = [column.method for column in columns]
        read = [setting(key, value) for key, value in given.pop("settings", {}).items()]
        settings = {f"{method}.{name}": value for method, name, value in read}
        GenerateConfig.resolve(given)  # what is wrong for every method is said without naming one
        runs = []
        for column in columns:
            own = {key: value for key, value in settings.items() if key.startswith(f"{column.method}.")}
            asked = {**column.options, "set": {**own, **column.options.get("set", {})}}
            asked |= {"method": column.method, "out": None if out is None else str(Path(out) / "runs" / column.folder)}
            kind = SampleConfig if "control" in asked else GenerateConfig
            try:
                runs.append(kind.resolve({**given, **asked}))
            except TiltingError as error:
                raise named(column.label, error) from None
        used: dict[str, Any] = {}
        for column, run in zip(columns, runs, strict=True):
            if column.label != column.method:  # its label has its own settings
                continue
            used |= dict(run.settings)
            key = f"{run.method}.particles"
            used |= {key: run.particles} if key in settings else {}
        useless = set.intersection(*(set(run.unused) for run in runs))
        unused = [key for key in settings if key.partition(".")[0] not in methods] + sorted(useless)
        values: dict[str, Any] = {one.name: getattr(runs[0], one.name) for one in fields(GenerateConfig)}
        values |= {"particles": given.get("particles"), "eta": given.get("eta"), "settings": tuple(used.items()), "out": out}
        labels = tuple(column.label for column in columns)
        return cls(**{**values, "unused": tuple(unused)}, methods=labels, sweep=sweep, runs=tuple(runs))


def named(method: str, error: TiltingError) -> TiltingError:
    """The error with the method's name in front, unless its message begins with it."""
    return error if str(error).startswith((f"{method} ", f"method {method} ")) else TiltingError(f"{method}: {error}")
