"""`tilting doctor`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tilting.cli import finetune_options as its
from tilting.cli import options as given_by
from tilting.errors import TiltingError


def doctor(
    prompts: given_by.Prompts = None,
    prompts_file: given_by.PromptsFile = None,
    full: Annotated[bool, typer.Option("--full", help="A whole batch, and one training step.")] = False,
    model: given_by.Model = None,
    reward: given_by.Reward = None,
    objective: its.Objective = None,
    train_steps: its.TrainSteps = None,
    steps: given_by.Steps = None,
    batch_size: its.BatchSize = None,
    accumulate: its.Accumulate = None,
    eta: its.Eta = None,
    cfg: given_by.Cfg = None,
    negative_prompt: given_by.NegativePrompt = None,
    lr: its.Rate = None,
    rank: its.Rank = None,
    parts: its.LoraParts = None,
    weight_decay: its.WeightDecay = None,
    clip: its.Clip = None,
    lr_decay: its.Decay = None,
    precision: its.Precision = None,
    settings: its.Settings = None,
    checkpoint_every: its.CheckpointEvery = None,
    sample_every: its.SampleEvery = None,
    sample_images: its.SampleImages = None,
    judge: its.Judge = None,
    early_stop: its.EarlyStop = None,
    init_lora: its.InitLora = None,
    tracker: its.Tracker = None,
    out: its.Out = None,
    seed: given_by.Seed = None,
    config: given_by.Config = None,
    quiet: given_by.Quiet = None,
    as_json: given_by.Json = None,
) -> None:
    """Examine a fine-tuning run before it is made: arithmetic, memory, gradients, ratios. Takes the options of finetune."""
    given = {
        "prompts": prompts, "prompts-file": prompts_file, "model": model, "reward": reward, "objective": objective,
        "train-steps": train_steps, "steps": steps, "batch-size": batch_size, "accumulate": accumulate, "eta": eta,
        "cfg": cfg, "negative-prompt": negative_prompt, "lr": lr, "rank": rank, "parts": parts, "weight-decay": weight_decay,
        "clip": clip, "lr-decay": lr_decay, "precision": precision, "checkpoint-every": checkpoint_every,
        "sample-every": sample_every, "sample-images": sample_images, "judge": judge, "early-stop": early_stop,
        "init-lora": init_lora, "tracker": tracker or None, "out": out, "seed": seed, "quiet": quiet, "json": as_json,
    }  # fmt: skip
    options, resolved = its.collect(given, config, settings)
    from tilting.experiments.doctor import doctor as examine
    from tilting.experiments.doctor import lines

    found = examine(resolved, full)
    if options.get("json"):
        typer.echo(json.dumps(found))
    elif not options.get("quiet"):
        for line in lines(found, resolved):
            typer.echo(line)
    failed = [f"{name}: {check['line']}" for name, check in found["checks"].items() if not check["ok"]]
    if failed:
        raise TiltingError(f"a check failed, {failed[0]}")
