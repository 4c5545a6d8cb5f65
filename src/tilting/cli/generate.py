"""`tilting generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tilting.cli import options as given_by
from tilting.cli.options import Text as Text
from tilting.cli.options import option as option
from tilting.errors import TiltingError
from tilting.experiments.config import read_yaml, resolve
from tilting.experiments.settings import parse_setting


def generate(
    context: typer.Context,
    prompts: given_by.Prompts = None,
    prompts_file: given_by.PromptsFile = None,
    model: given_by.Model = None,
    reward: given_by.Reward = None,
    method: Annotated[Text, option("--method", help="See `tilting methods`. [base]")] = None,
    particles: given_by.Particles = None,
    steps: given_by.Steps = None,
    eta: given_by.Eta = None,
    cfg: given_by.Cfg = None,
    negative_prompt: given_by.NegativePrompt = None,
    images: given_by.Images = None,
    batch_size: given_by.BatchSize = None,
    settings: given_by.Settings = None,
    image: given_by.Picture = None,
    strength: given_by.Strength = None,
    lora: Annotated[list[str] | None, option("--lora", metavar="DIR[=SCALE]", help="A LoRA to draw with, repeatable.")] = None,
    lora_steps: Annotated[Text, option("--lora-steps", metavar="FIRST:LAST", help="Steps in which LoRAs are on. [all]")] = None,
    out: Annotated[Text, option("--out", metavar="DIR", help="Folder to write, or to go on with.")] = None,
    seed: given_by.Seed = None,
    config: given_by.Config = None,
    print_config: given_by.PrintConfig = False,
    quiet: given_by.Quiet = None,
    as_json: given_by.Json = None,
) -> None:
    """Draw images of prompts with a method and a reward into DIR: images/, grid.png, manifest.json."""
    options = read_yaml(config) if config is not None else {}
    given = {
        "prompts": given_by.prompts_of(prompts, prompts_file), "model": model, "reward": reward or None,
        "method": method, "particles": particles, "steps": steps, "eta": eta, "cfg": cfg, "negative-prompt": negative_prompt,
        "images": images, "batch-size": batch_size, "image": image, "strength": strength, "out": out, "seed": seed,
        "lora": lora or None, "lora-steps": lora_steps, "quiet": quiet, "json": as_json,
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
