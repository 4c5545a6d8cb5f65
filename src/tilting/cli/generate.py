"""`tilting generate`."""

from __future__ import annotations

from pathlib import Path

import typer

from tilting.cli import options as given_by
from tilting.cli.request import Request
from tilting.config.generate import OPTIONS, resolve


def generate(
    context: typer.Context,
    prompts: given_by.Prompts = None,
    prompts_file: given_by.PromptsFile = None,
    model: given_by.Model = None,
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
    published: given_by.Published = None,
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
    """Draw images of prompts with a method and a reward. DIR gets images/, grid.png, manifest.json."""
    request = Request.of(context, OPTIONS)
    resolved = resolve(request.options)
    if request.only_prints(resolved):
        return
    request.tell(resolved.unused)
    from tilting.generation.run import describe, run

    manifest = run(resolved, request.words, request.quiet)
    request.answer(manifest["summary"], describe(manifest), f"grid: {Path(resolved.out or '') / 'grid.png'}")
