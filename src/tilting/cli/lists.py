"""`tilting methods`, `rewards`, `models`: what there is."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Annotated, Any

import typer

from tilting.models import MODELS
from tilting.presets import PRESETS
from tilting.rewards.spec import catalog

Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


def _show(rows: dict[str, dict[str, Any]], as_json: bool) -> None:
    """Names and what is known of each: as JSON, or a line each."""
    if as_json:
        return typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    width = max(map(len, rows)) + 2
    for name, row in rows.items():
        typer.echo(f"{name:{width}}{row['about']}")
        for line in row.get("notes", []):
            typer.echo(f"{'':{width}}{line}")


def methods(as_json: Json = False) -> None:
    """List the methods and their settings, which --set changes."""
    rows = {}
    for name, preset in PRESETS.items():
        settings = {f.name: f.default for f in fields(preset)}  # type: ignore[arg-type]
        about = (preset.__doc__ or "").strip().splitlines()[0]
        shown = ", ".join(f"{k}={v}" for k, v in settings.items())
        cost = getattr(preset, "cost", "")
        notes = [f"evaluations per image: {cost}"] + ([shown] if shown else [])
        rows[name] = {"about": about, "evaluations": cost, "settings": settings} | ({} if as_json else {"notes": notes})
    _show(rows, as_json)


def rewards(as_json: Json = False) -> None:
    """List the rewards, their units, and whether they have a gradient."""
    rows = {}
    for name, entry in catalog().items():
        kind = "differentiable" if entry.differentiable else "black-box"
        rows[name] = {"about": entry.about, "units": entry.units, "differentiable": entry.differentiable}
        if not as_json:
            argument = f"; {name}:{entry.argument.upper()}" if entry.argument else ""
            rows[name]["notes"] = [f"{entry.units}, {kind}{argument}"]
    if not as_json:
        rows["FILE.py:FUNCTION"] = {"about": "your own: (images [b,3,h,w] in [0,1], prompts) -> (b,); black-box unless it says"}
    _show(rows, as_json)


def models(as_json: Json = False) -> None:
    """List the models."""
    rows = {name: {"about": about} for name, about in MODELS.items()}
    if not as_json:
        rows["FOLDER"] = {"about": "a diffusers StableDiffusionPipeline folder of safetensors"}
        rows["OWNER/NAME"] = {"about": "the same from a hub, where there is network"}
    _show(rows, as_json)
