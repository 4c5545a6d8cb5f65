"""`tilting generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tilting.errors import TiltingError
from tilting.experiments.config import read_yaml, resolve
from tilting.experiments.settings import parse_setting

Text = str | None


def option(*names: str, help: str, metavar: str | None = None) -> Any:
    """An option that is None where it is not given."""
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


def generate(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.", show_default=False)] = None,
    prompts_file: Annotated[Text, option("--prompts", metavar="FILE", help="Prompts: .txt, .jsonl, .csv, .parquet.")] = None,
    model: Annotated[Text, option("--model", help="pocket, a diffusers folder, or a hub id. [pocket]")] = None,
    reward: Annotated[
        list[str] | None, option("--reward", metavar="SPEC", help="NAME[:ARGUMENT][=WEIGHT], repeatable. [clip for pocket]")
    ] = None,
    method: Annotated[Text, option("--method", help="See `tilting methods`. [base]")] = None,
    particles: Annotated[int | None, option("--particles", help="N, streams per image. [the method's]")] = None,
    steps: Annotated[int | None, option("--steps", help="T, denoising steps. [the model's: 50]")] = None,
    eta: Annotated[float | None, option("--eta", help="0 deterministic ... 1 ancestral. [1]")] = None,
    cfg: Annotated[float | None, option("--cfg", help="Guidance scale. [the model's: 4 for pocket]")] = None,
    negative_prompt: Annotated[Text, option("--negative-prompt", help="Text of the unconditional branch. ['']")] = None,
    images: Annotated[int | None, option("--images", help="Images per prompt. [1]")] = None,
    batch_size: Annotated[int | None, option("--batch-size", help="Latents per denoiser call. [16]")] = None,
    settings: Annotated[
        list[str] | None, option("--set", metavar="METHOD.FIELD=VALUE", help="A method's own setting, repeatable.")
    ] = None,
    out: Annotated[Text, option("--out", metavar="DIR", help="Folder to write, or to go on with.")] = None,
    seed: Annotated[int | None, option("--seed", help="Seed of the run. [0]")] = None,
    config: Annotated[Text, option("--config", metavar="FILE", help="Options from YAML; the command line wins.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved YAML and stop.")] = False,
    quiet: Annotated[bool | None, option("--quiet", help="No progress and no summary.")] = None,
    as_json: Annotated[bool | None, option("--json", help="Print the summary as JSON.")] = None,
) -> None:
    """Draw images of prompts with a method and a reward into DIR: images/, grid.png, manifest.json."""
    options = read_yaml(config) if config is not None else {}
    if prompts and prompts_file is not None:
        raise TiltingError("prompts are given both as words and by --prompts: give one of them")
    given = {
        "prompts": prompts_file if prompts_file is not None else prompts or None, "model": model, "reward": reward or None,
        "method": method, "particles": particles, "steps": steps, "eta": eta, "cfg": cfg, "negative-prompt": negative_prompt,
        "images": images, "batch-size": batch_size, "out": out, "seed": seed, "quiet": quiet, "json": as_json,
    }  # fmt: skip
    options |= {key: value for key, value in given.items() if value is not None}
    options["set"] = {**(options.get("set") or {}), **dict(map(parse_setting, settings or []))}
    resolved = resolve(options)
    if print_config:
        return typer.echo(resolved.yaml(), nl=False)
    if resolved.out is None:
        raise TiltingError("say where to write: --out DIR")
    from tilting.experiments.run import describe, run

    silent = bool(options.get("quiet"))
    manifest = run(resolved, ["tilting", *context.obj], quiet=silent)
    if options.get("json"):
        typer.echo(json.dumps(manifest["summary"]))
    elif not silent:
        typer.echo(describe(manifest))
        typer.echo(f"grid: {Path(resolved.out) / 'grid.png'}")
