"""The options of `tilting evaluate`, checked, and its summary for people. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilting.config.base import LegacyConfig as BaseConfig
from tilting.config.base import given_of
from tilting.config.settings import integer, text, texts
from tilting.errors import TiltingError

PATHS = ("reference", "reference-image", "clip", "inception", "lpips", "vgg")
OPTIONS = ("runs", "out", *PATHS, "seed")


@dataclass(frozen=True)
class EvaluateConfig(BaseConfig):
    """A checked request.

    Attributes:
        runs, out, reference, reference_image, clip, inception, lpips, vgg, seed: the options of these names; ``seed``
            draws the halves of a reference.
    """

    options = OPTIONS

    runs: tuple[str, ...]
    out: str | None = None
    reference: str | None = None
    reference_image: str | None = None
    clip: str | None = None
    inception: str | None = None
    lpips: str | None = None
    vgg: str | None = None
    seed: int = 0


def resolve_evaluate(options: Mapping[str, Any]) -> EvaluateConfig:
    """Check options by name. Raises TiltingError: an unknown option, no run, or a file that is not there."""
    options = given_of(options, OPTIONS)
    runs = texts("runs", options.get("runs") or [])
    if not runs:
        raise TiltingError("no run is given: name at least one folder that `tilting generate` wrote")
    given = {key: text(key, options[key]) for key in ("out", *PATHS) if options.get(key) is not None}
    for key in ("reference-image", "inception", "lpips", "vgg"):
        if key in given and not Path(given[key]).is_file():
            raise TiltingError(f"there is no file {given[key]!r} for --{key}")
    if "lpips" in given and "vgg" not in given:
        raise TiltingError("--lpips holds LPIPS' own weights, and needs those of VGG16 too: give --vgg FILE")
    seed = integer("seed", options.get("seed", 0) or 0, 0)
    named = {key.replace("-", "_"): value for key, value in given.items()}
    return EvaluateConfig(tuple(runs), seed=seed, **named)


def describe(metrics: Mapping[str, Any]) -> str:
    """A table for people: one line per run, the floor, and the verdicts."""

    def cell(value: object) -> str:
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    rewards = list(dict.fromkeys(key for line in metrics["summary"] for key in line["rewards"]))
    columns = ("judge", "tclip", "diversity", "fid", "cmmd", "evaluations_per_image", "verdict")
    rows = [["run", *rewards, "judge", "T-CLIP", "diversity", "FID", "CMMD", "evaluations", "verdict"]]
    for line in metrics["summary"]:
        means = [line["rewards"].get(key) for key in rewards]
        rows.append([cell(value) for value in (line["run"], *means, *(line[key] for key in columns))])
    floor = metrics["floor"]
    if floor:
        distances = [cell(floor[name]["pooled"]) for name in ("fid", "cmmd")]
        rows.append(["floor", *["-"] * (len(rewards) + 3), *distances, "-", "-"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    names = metrics["extractors"]
    lines.append(f"FID in {names['fid']}, CMMD in {names['cmmd']}" + (f"; floor: {floor['how']}" if floor else ""))
    lines += [f"{row['name']}: {row['verdict']['reason']}" for row in metrics["runs"] if row["verdict"]]
    return "\n".join([*lines, *metrics["notes"]])
