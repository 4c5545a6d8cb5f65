"""The options of `tilting compare`, checked: those of `tilting generate`, for several methods.

Steps are the same for all, so that runs pair: settings of papers are given by ``--set``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self

from typing_extensions import Doc

from tilting.config.generate import GenerateConfig
from tilting.config.settings import setting
from tilting.declare import Check, Field, Metavar, Option
from tilting.errors import TiltingError, nearest
from tilting.presets import METHODS

DEFAULT = ("base", "bon", "code", "codex")
"""Where none are named."""


def _methods(name: str, value: tuple[str, ...]) -> tuple[str, ...]:
    """Names from a list, or from texts with commas."""
    methods = tuple(one.strip() for part in value for one in part.split(",") if one.strip())
    if not methods:
        raise TiltingError("no method is named: --methods base,code,codex")
    for i, method in enumerate(methods):
        if method not in METHODS:
            raise TiltingError(f"there is no method {method!r}{nearest(method, METHODS)}")
        if method in methods[:i]:
            raise TiltingError(f"the method {method!r} is named twice in --methods")
    return methods


@dataclass(frozen=True)
class CompareConfig(GenerateConfig):
    """A checked request: as of the first run, but for particles, eta and settings as they were asked for.

    Attributes:
        runs: what each method is to draw, into DIR/runs/METHOD; they differ in method, settings, particles and eta alone.
        unused: options that no method has a use for.
    """

    methods: Annotated[
        tuple[str, ...], Metavar("A,B,..."), Option(default=",".join(DEFAULT)), Check(_methods), Doc("See `tilting methods`.")
    ] = DEFAULT
    runs: Annotated[tuple[GenerateConfig, ...], Option(internal=True), Doc("What each method is to draw.")] = ()

    @classmethod
    def options(cls) -> dict[str, Field]:
        return {name: one for name, one in super().options().items() if name not in ("method", "published")}

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Check a request, before torch is imported.

        Args:
            options: by option name, as `tilting.config.generate.GenerateConfig` has them, and ``methods``.

        Raises:
            TiltingError: one sentence that names the option, or the method that cannot be run so.
        """
        given = cls.checked({"prompts": (), **options})
        methods, out = given.pop("methods", DEFAULT), given.pop("out", None)
        read = [setting(key, value) for key, value in given.pop("settings", {}).items()]
        settings = {f"{method}.{name}": value for method, name, value in read}
        GenerateConfig.resolve(given)  # what is wrong for every method is said without naming one
        runs = []
        for method in methods:
            own = {key: value for key, value in settings.items() if key.startswith(f"{method}.")}
            folder = None if out is None else str(Path(out) / "runs" / method)
            try:
                runs.append(GenerateConfig.resolve({**given, "method": method, "set": own, "out": folder}))
            except TiltingError as error:
                raise named(method, error) from None
        used: dict[str, Any] = {}
        for run in runs:
            used |= dict(run.settings)
            key = f"{run.method}.particles"
            used |= {key: run.particles} if key in settings else {}
        useless = set.intersection(*(set(run.unused) for run in runs))
        unused = [key for key in settings if key.partition(".")[0] not in methods] + sorted(useless)
        values: dict[str, Any] = {one.name: getattr(runs[0], one.name) for one in fields(GenerateConfig)}
        values |= {"particles": given.get("particles"), "eta": given.get("eta"), "settings": tuple(used.items()), "out": out}
        return cls(**{**values, "unused": tuple(unused)}, methods=methods, runs=tuple(runs))


def named(method: str, error: TiltingError) -> TiltingError:
    """The refusal, with the method's name in front where it does not say it."""
    return error if str(error).startswith((f"{method} ", f"method {method} ")) else TiltingError(f"{method}: {error}")
