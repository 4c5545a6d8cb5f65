"""The options of `tilting evaluate`, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from annotated_types import Ge
from typing_extensions import Doc

from tilting.config.base import BaseConfig
from tilting.declare import Check, Metavar, Option
from tilting.errors import TiltingError


def _is_file(name: str, value: str) -> str:
    if not Path(value).is_file():
        raise TiltingError(f"there is no file {value!r} for --{name}")
    return value


@dataclass(frozen=True)
class EvaluateConfig(BaseConfig):
    """A validated request; ``seed`` splits a reference into halves."""

    runs: Annotated[tuple[str, ...], Option(positional="RUN"), Doc("Folders of `tilting generate`.")] = ()
    out: Annotated[str | None, Metavar("DIR"), Option(letter="o"), Doc("Folder to write: metrics.json, report.html.")] = None
    reference: Annotated[
        str | None,
        Metavar("DIR"),
        Option(default="the base run of a seed of its own"),
        Doc("A base run of another seed, or a folder of pictures."),
    ] = None
    reference_image: Annotated[str | None, Metavar("FILE"), Check(_is_file), Doc("Reference picture of I-Gram.")] = None
    clip: Annotated[str | None, Metavar("FOLDER"), Option(default="pocket-clip"), Doc("CLIP of CMMD, T-CLIP and I-Gram.")] = (
        None
    )
    inception: Annotated[
        str | None,
        Metavar("FILE"),
        Check(_is_file),
        Option(default="pocket-judge's features"),
        Doc("Inception weights of FID."),
    ] = None
    lpips: Annotated[
        str | None,
        Metavar("FILE"),
        Check(_is_file),
        Option(default="pocket-judge's features"),
        Doc("LPIPS weights of diversity."),
    ] = None
    vgg: Annotated[str | None, Metavar("FILE"), Check(_is_file), Doc("VGG weights of I-Gram's Gram features.")] = None
    seed: Annotated[int, Ge(0), Doc("Seed of the split of a reference into halves.")] = 0

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Validate options by name. Raises TiltingError: an unknown option, no run, or a missing file."""
        values = cls.checked(options)
        if not values.get("runs"):
            raise TiltingError("no run is given: name at least one folder that `tilting generate` wrote")
        if "lpips" in values and "vgg" not in values:
            raise TiltingError("--lpips holds LPIPS' own weights, and needs those of VGG16 too: give --vgg FILE")
        return cls(**values)
