"""`tilting condition train`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tilting.cli import finetune_options as its
from tilting.cli import options as given_by
from tilting.cli.options import Text, option
from tilting.errors import TiltingError
from tilting.experiments.condition.train_config import read_yaml, resolve_train


def train(
    context: typer.Context,
    prompts: given_by.Prompts = None,
    prompts_file: given_by.PromptsFile = None,
    model: given_by.Model = None,
    classifier: Annotated[
        list[str] | None,
        option("--classifier", metavar="FIT", help="Folder of `condition fit`, or file.py:function; repeatable."),
    ] = None,
    train_steps: Annotated[int | None, option("--train-steps", help="Training steps. [150]")] = None,
    steps: Annotated[int | None, option("--steps", help="T, denoising steps. [12]")] = None,
    batch_size: Annotated[int | None, option("--batch-size", help="Images per training step, over all processes. [8]")] = None,
    accumulate: its.Accumulate = None,
    gamma: Annotated[float | None, option("--gamma", help="Strength of the label in what is aimed at. [10]")] = None,
    kl: Annotated[float | None, option("--kl", help="Weight of the exact path KL to the model. [1]")] = None,
    place: Annotated[Text, option("--place", metavar="latent|score|time", help="Where labels enter. [latent]")] = None,
    planner: Annotated[
        Text, option("--planner", metavar="backprop|ppo", help="ppo needs no gradient of the classifier. [backprop]")
    ] = None,
    truncation: Annotated[
        Text, option("--truncation", metavar="random|all", help="Steps that carry gradient. [random]")
    ] = None,
    cfg: given_by.Cfg = None,
    eta: Annotated[float | None, option("--eta", help="Noise of the chain, above 0. [1]")] = None,
    negative_prompt: given_by.NegativePrompt = None,
    lora_lr: Annotated[float | None, option("--lora-lr", help="Learning rate of the LoRA. [1e-3]")] = None,
    embedding_lr: Annotated[float | None, option("--embedding-lr", help="Learning rate of the embedding. [1e-2]")] = None,
    rank: its.Rank = None,
    parts: its.LoraParts = None,
    weight_decay: its.WeightDecay = None,
    clip: its.Clip = None,
    precision: its.Precision = None,
    checkpoint_every: Annotated[int | None, option("--checkpoint-every", help="Training steps between saves. [25]")] = None,
    tracker: its.Tracker = None,
    out: its.Out = None,
    seed: given_by.Seed = None,
    config: given_by.Config = None,
    print_config: given_by.PrintConfig = False,
    quiet: given_by.Quiet = None,
    as_json: given_by.Json = None,
) -> None:
    """Train a control of labels into DIR: control.json, lora/, embedding, classifiers/, metrics.jsonl, checkpoints/."""
    options = read_yaml(config) if config is not None else {}
    given = {
        "prompts": given_by.prompts_of(prompts, prompts_file), "model": model,
        "classifier": classifier or None, "train-steps": train_steps, "steps": steps, "batch-size": batch_size,
        "accumulate": accumulate, "gamma": gamma, "kl": kl, "place": place, "planner": planner, "truncation": truncation,
        "cfg": cfg, "eta": eta, "negative-prompt": negative_prompt, "lora-lr": lora_lr, "embedding-lr": embedding_lr,
        "rank": rank, "parts": parts, "weight-decay": weight_decay, "clip": clip, "precision": precision,
        "checkpoint-every": checkpoint_every, "tracker": tracker or None, "out": out, "seed": seed, "quiet": quiet,
        "json": as_json,
    }  # fmt: skip
    options |= {key: value for key, value in given.items() if value is not None}
    resolved = resolve_train(options)
    if print_config:
        return typer.echo(resolved.yaml(), nl=False)
    if resolved.out is None:
        raise TiltingError("say where to write: --out DIR")
    from tilting.experiments.condition.train import condition_train, describe

    silent = bool(options.get("quiet"))
    manifest = condition_train(resolved, ["tilting", *context.obj], quiet=silent)
    if options.get("json"):
        typer.echo(json.dumps(manifest["summary"], ensure_ascii=False))
    elif not silent:
        typer.echo(describe(manifest))
