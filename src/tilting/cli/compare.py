"""`tilting compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilting.cli import options as given_by
from tilting.cli.options import option
from tilting.cli.request import Request
from tilting.evaluation.compare import OPTIONS, PAGE, SHEET, describe, resolve_compare


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
    lora: given_by.Lora = None,
    lora_steps: given_by.LoraSteps = None,
    device: given_by.Device = None,
    precision: given_by.Precision = None,
    out: given_by.Out = None,
    seed: given_by.Seed = None,
    config: given_by.Config = None,
    print_config: given_by.PrintConfig = False,
    quiet: given_by.Quiet = None,
    as_json: given_by.Json = None,
) -> None:
    """Draw the same prompts and noise by several methods. DIR gets compare.html, compare.png, metrics.json, runs/."""
    request = Request.of(context, OPTIONS)
    resolved = resolve_compare(request.options)
    if request.only_prints(resolved):
        return
    from tilting.evaluation.compare import compare as run

    metrics = run(resolved, request.words, request.quiet)
    folder = Path(resolved.out or "")
    summary = {key: metrics[key] for key in ("reference", "methods")}
    request.answer(summary, describe(metrics), f"page: {folder / PAGE}, picture: {folder / SHEET}")
