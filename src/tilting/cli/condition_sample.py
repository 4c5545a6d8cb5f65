"""`tilting condition sample`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tilting.cli import options as given_by
from tilting.cli.options import Text, option
from tilting.errors import TiltingError
from tilting.experiments.condition.sample_config import read_yaml, resolve_sample
from tilting.experiments.settings import parse_setting


def sample(
    context: typer.Context,
    prompts: given_by.Prompts = None,
    prompts_file: given_by.PromptsFile = None,
    control: Annotated[
        list[str] | None, option("--control", metavar="CTL", help="Folder of `condition train`, repeatable.")
    ] = None,
    label: Annotated[list[str] | None, option("--label", metavar="NAME=VALUE", help="What to obey, repeatable.")] = None,
    strength: Annotated[
        list[str] | None, option("--strength", metavar="N,N,...", help="Of the labels; several are a sweep. [1]")
    ] = None,
    model: Annotated[Text, option("--model", help="pocket, a diffusers folder, or a hub id. [the control's]")] = None,
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
    out: Annotated[Text, option("--out", metavar="DIR", help="Folder to write, or to go on with.")] = None,
    seed: given_by.Seed = None,
    config: given_by.Config = None,
    print_config: given_by.PrintConfig = False,
    quiet: given_by.Quiet = None,
    as_json: given_by.Json = None,
) -> None:
    """Draw images that obey labels into DIR, as `tilting generate` does: images/, grid.png, manifest.json."""
    options = read_yaml(config) if config is not None else {}
    given = {
        "prompts": given_by.prompts_of(prompts, prompts_file), "control": control or None,
        "label": label or None, "strength": [n for text in strength for n in text.split(",")] if strength else None,
        "model": model, "reward": reward or None, "method": method, "particles": particles, "steps": steps, "eta": eta,
        "cfg": cfg, "negative-prompt": negative_prompt, "images": images, "batch-size": batch_size, "out": out,
        "seed": seed, "quiet": quiet, "json": as_json,
    }  # fmt: skip
    options |= {key: value for key, value in given.items() if value is not None}
    options["set"] = {**(options.get("set") or {}), **dict(map(parse_setting, settings or []))}
    resolved = resolve_sample(options)
    if print_config:
        return typer.echo(resolved.yaml(), nl=False)
    if resolved.out is None:
        raise TiltingError("say where to write: --out DIR")
    from tilting.experiments.condition.sample import condition_sample, describe

    silent = bool(options.get("quiet"))
    manifest = condition_sample(resolved, ["tilting", *context.obj], quiet=silent)
    if options.get("json"):
        typer.echo(json.dumps(manifest.get("summary", manifest.get("sweep")), ensure_ascii=False))
    elif not silent:
        typer.echo(describe(manifest))
