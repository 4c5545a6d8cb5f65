"""`tilting lora scale | mix | export | info`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tilting.errors import TiltingError
from tilting.models.lora_file import LoraForm, lora_file, parse_lora
from tilting.training.lora_tools import lora_info, write_export, write_mix

lora = typer.Typer(
    help="Scale, mix, export and look at LoRAs.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Place = Annotated[str, typer.Argument(metavar="DIR", help="A LoRA's folder, or a fine-tuning run's.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
Out = Annotated[str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.", show_default=False)]
Of = Annotated[
    str | None,
    typer.Option("--model", metavar="DIR|ID", help="Of what model, for names of its original code.", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No summary.")]


@lora.command()
def info(place: Place, model: Of = None, as_json: AsJson = False) -> None:
    """What a LoRA holds: rank, layers, parts, and how much it adds."""
    lora_file(place)
    found = lora_info(place, model)
    if as_json:
        return typer.echo(json.dumps(found, indent=1))
    for key, value in found.items():
        if value == []:
            continue
        shown = ", ".join(value) if isinstance(value, list) else f"{value:.6g}" if isinstance(value, float) else value
        typer.echo(f"{key:12}{shown}")


@lora.command(context_settings={"ignore_unknown_options": True})  # a factor may be below 0
def scale(
    place: Place,
    factor: Annotated[float, typer.Argument(metavar="FACTOR", help="Of what it adds.", show_default=False)],
    out: Out = None,
    model: Of = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a LoRA that adds FACTOR times what DIR adds."""
    _write([f"{place}={factor!r}"], out, model, quiet, as_json)


@lora.command()
def mix(
    places: Annotated[list[str], typer.Argument(metavar="DIR[=SCALE]", help="LoRAs of one model.", show_default=False)],
    out: Out = None,
    model: Of = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the sum of several LoRAs, each by its scale."""
    _write(places, out, model, quiet, as_json)


@lora.command()
def export(
    place: Place,
    form: Annotated[
        LoraForm, typer.Option("--format", help="diffusers (ComfyUI too, of transformers), kohya (A1111, ComfyUI) or peft.")
    ] = "kohya",
    out: Out = None,
    model: Of = None,
    quiet: Quiet = False,
) -> None:
    """Write a LoRA as another program reads it."""
    lora_file(place)
    if not out:
        raise TiltingError("say where to write: --out DIR")
    path = write_export(place, out, form, model)
    if not quiet:
        typer.echo(f"LoRA in the names of {form}: {path}")


def _write(places: list[str], out: str | None, model: str | None, quiet: bool, as_json: bool) -> None:
    specs = [parse_lora(place) for place in places]
    if not out:
        raise TiltingError("say where to write: --out DIR")
    path = write_mix(specs, out, model)
    if as_json:
        typer.echo(json.dumps(lora_info(str(path)), indent=1))
    elif not quiet:
        typer.echo(f"LoRA of rank {lora_info(str(path))['rank']}: {path}")
