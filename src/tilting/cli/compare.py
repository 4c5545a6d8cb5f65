"""`tilting compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tilting.cli import options as given_by
from tilting.cli.options import Text, option
from tilting.errors import TiltingError
from tilting.experiments.compare.run import OPTIONS, PAGE, SHEET, describe, resolve_compare
from tilting.experiments.settings import parse_setting
from tilting.experiments.yaml_layer import read_yaml


def compare(
    context: typer.Context,
    prompts: given_by.Prompts = None,
    prompts_file: given_by.PromptsFile = None,
    methods: Annotated[
        list[str] | None, option("--methods", metavar="A,B,...", help="See `tilting methods`. [base,bon,code,codex]")
    ] = None,
    model: given_by.Model = None,
    reward: given_by.Reward = None,
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
    out: Annotated[Text, option("--out", metavar="DIR", help="Folder to write, or to go on with.")] = None,
    seed: given_by.Seed = None,
    config: given_by.Config = None,
    print_config: given_by.PrintConfig = False,
    quiet: given_by.Quiet = None,
    as_json: given_by.Json = None,
) -> None:
    """Draw the same prompts and noise by several methods into DIR: compare.html, compare.png, metrics.json, runs/."""
    options = read_yaml(config, OPTIONS) if config is not None else {}
    given = {
        "prompts": given_by.prompts_of(prompts, prompts_file), "methods": methods or None, "model": model,
        "reward": reward or None, "particles": particles, "steps": steps, "eta": eta, "cfg": cfg,
        "negative-prompt": negative_prompt, "images": images, "batch-size": batch_size, "image": image, "strength": strength,
        "out": out, "seed": seed, "quiet": quiet, "json": as_json,
    }  # fmt: skip
    options |= {key: value for key, value in given.items() if value is not None}
    options["set"] = {**(options.get("set") or {}), **dict(map(parse_setting, settings or []))}
    resolved = resolve_compare(options)
    if print_config:
        return typer.echo(resolved.yaml(), nl=False)
    if resolved.out is None:
        raise TiltingError("say where to write: --out DIR")
    from tilting.experiments.compare.run import compare as run

    silent = bool(options.get("quiet"))
    metrics = run(resolved, ["tilting", *context.obj], quiet=silent)
    if options.get("json"):
        typer.echo(json.dumps({"reference": metrics["reference"], "methods": metrics["methods"]}))
    elif not silent:
        typer.echo(describe(metrics))
        typer.echo(f"page: {Path(resolved.out) / PAGE}, picture: {Path(resolved.out) / SHEET}")
