"""`tilting condition train`."""

from __future__ import annotations

from typing import Annotated

import typer

from tilting.cli import finetune_options as its
from tilting.cli import options as given_by
from tilting.cli.options import Text, option
from tilting.cli.request import Request
from tilting.config.condition_train import OPTIONS, resolve_train


def train(
    context: typer.Context,
    prompts: given_by.Prompts = None,
    prompts_file: given_by.PromptsFile = None,
    model: given_by.Model = None,
    classifier: Annotated[
        list[str] | None,
        option("--classifier", metavar="FIT", help="Folder of `condition fit`, or file.py:function; repeatable."),
    ] = None,
    objective: Annotated[
        Text, option("--objective", metavar="ctrl|classifier-free", help="The latter learns from --data. [ctrl]")
    ] = None,
    data: Annotated[
        list[str] | None, option("--data", metavar="PATH", help="Labelled pictures as of `condition fit`; repeatable.")
    ] = None,
    label: Annotated[
        list[str] | None, option("--label", metavar="NAME[=KIND]", help="Column of --data to learn, repeatable. [all]")
    ] = None,
    label_dropout: Annotated[
        float | None, option("--label-dropout", help="Share of --data trained without label. [0.1]")
    ] = None,
    skip_bad: Annotated[bool | None, option("--skip-bad", help="Leave bad rows of --data out.")] = None,
    train_steps: Annotated[int | None, option("--train-steps", help="Training steps. [150]")] = None,
    steps: Annotated[int | None, option("--steps", help="T, denoising steps. [12]")] = None,
    batch_size: Annotated[
        int | None, option("--batch-size", help="Images per training step, over all processes. [8; 32 of --data]")
    ] = None,
    accumulate: its.Accumulate = None,
    gamma: Annotated[
        float | None, option("--gamma", help="Strength of the label in what is aimed at. [10; pocket 7680]")
    ] = None,
    kl: Annotated[float | None, option("--kl", help="Weight of the exact path KL to the model. [1]")] = None,
    place: Annotated[
        Text, option("--place", metavar="latent|score|time", help="Where labels enter. [latent; pocket time]")
    ] = None,
    planner: Annotated[
        Text, option("--planner", metavar="backprop|ppo", help="ppo needs no gradient of the classifier. [backprop]")
    ] = None,
    truncation: Annotated[
        Text, option("--truncation", metavar="random|all", help="Steps that carry gradient. [random]")
    ] = None,
    cfg: given_by.Cfg = None,
    eta: Annotated[float | None, option("--eta", help="Noise of the chain, above 0. [1]")] = None,
    negative_prompt: given_by.NegativePrompt = None,
    lora_lr: Annotated[float | None, option("--lora-lr", help="Learning rate of the LoRA. [1e-3; pocket 4e-3]")] = None,
    embedding_lr: Annotated[
        float | None, option("--embedding-lr", help="Learning rate of the embedding. [1e-2; pocket 4e-2]")
    ] = None,
    rank: its.Rank = None,
    parts: its.LoraParts = None,
    weight_decay: its.WeightDecay = None,
    clip: its.Clip = None,
    device: given_by.Device = None,
    precision: given_by.Precision = None,
    checkpoint_every: Annotated[int | None, option("--checkpoint-every", help="Training steps between saves. [25]")] = None,
    tracker: its.Tracker = None,
    out: given_by.Out = None,
    seed: given_by.Seed = None,
    config: given_by.Config = None,
    print_config: given_by.PrintConfig = False,
    quiet: given_by.Quiet = None,
    as_json: given_by.Json = None,
) -> None:
    """Train a control of labels. DIR gets control.json, lora/, embedding, classifiers/, metrics.jsonl, checkpoints/."""
    request = Request.of(context, OPTIONS)
    resolved = resolve_train(request.options)
    if request.only_prints(resolved):
        return
    from tilting.conditioning.train_run import condition_train, describe

    manifest = condition_train(resolved, request.words, request.quiet)
    request.answer(manifest["summary"], describe(manifest))
