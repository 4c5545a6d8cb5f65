"""`tilting condition sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilting.cli import options as given_by
from tilting.cli.options import Text, option
from tilting.cli.request import Request
from tilting.config.condition_sample import OPTIONS, resolve_sample


def sample(
    context: typer.Context,
    prompts: given_by.Prompts = None,
    prompts_file: given_by.PromptsFile = None,
    control: Annotated[
        list[str] | None, option("--control", metavar="CTL", help="Folder of `condition train`, repeatable.")
    ] = None,
    classifier: Annotated[
        list[str] | None,
        option("--classifier", metavar="FIT", help="Guide by a `condition fit` instead of a control, repeatable."),
    ] = None,
    label: Annotated[list[str] | None, option("--label", metavar="NAME=VALUE", help="What to obey, repeatable.")] = None,
    strength: Annotated[
        list[str] | None, option("--strength", metavar="N,N,...", help="Of labels or guidance; several are a sweep. [1]")
    ] = None,
    model: Annotated[Text, option("--model", help="pocket, a diffusers folder, or a hub id. [the control's]")] = None,
    reward: given_by.Reward = None,
    method: given_by.Method = None,
    particles: given_by.Particles = None,
    steps: given_by.Steps = None,
    eta: given_by.Eta = None,
    cfg: given_by.Cfg = None,
    negative_prompt: given_by.NegativePrompt = None,
    images: given_by.Images = None,
    batch_size: given_by.BatchSize = None,
    settings: given_by.Settings = None,
    device: given_by.Device = None,
    precision: given_by.Precision = None,
    out: given_by.Out = None,
    seed: given_by.Seed = None,
    config: given_by.Config = None,
    print_config: given_by.PrintConfig = False,
    quiet: given_by.Quiet = None,
    as_json: given_by.Json = None,
) -> None:
    """Draw images that obey labels. DIR gets images/, grid.png, manifest.json, as of `tilting generate`."""
    request = Request.of(
        context, OPTIONS, strength=[n for text in strength for n in text.split(",")] if strength else None
    )  # fmt: skip
    resolved = resolve_sample(request.options)
    if request.only_prints(resolved):
        return
    from tilting.conditioning.sample_run import condition_sample, describe

    manifest = condition_sample(resolved, request.words, request.quiet)
    request.answer(manifest.get("summary", manifest.get("sweep")), describe(manifest, Path(resolved.out or "")))
