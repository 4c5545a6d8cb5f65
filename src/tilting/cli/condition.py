"""`tilting condition`: new controls from a small labelled data set (CTRL)."""

from __future__ import annotations

from typing import Annotated

import typer

from tilting.cli.condition_sample import sample
from tilting.cli.condition_train import train
from tilting.cli.options import Config, Device, Json, Out, PrintConfig, Quiet, Seed, Text, option
from tilting.cli.request import Request
from tilting.conditioning.fit_run import condition_fit, describe
from tilting.config.condition_fit import OPTIONS, resolve_fit

condition = typer.Typer(
    help="New controls from a small labelled data set (CTRL).", no_args_is_help=True, rich_markup_mode=None,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@condition.callback()
def _steps() -> None:
    """New controls from a small labelled data set (CTRL)."""


@condition.command("fit")
def fit(
    context: typer.Context,
    data: Annotated[
        Text, option("--data", metavar="PATH", help="Table (.csv, .jsonl, .parquet), or folder of class folders.")
    ] = None,
    label: Annotated[
        list[str] | None,
        option("--label", metavar="NAME[=KIND]", help="Column; KIND is classes, gaussian or A,B,...; repeatable. [all]"),
    ] = None,
    label_by: Annotated[
        Text, option("--label-by", metavar="SPEC", help="Label by a reward such as jpeg, or file.py:function.")
    ] = None,
    group: Annotated[
        Text, option("--group", metavar="COLUMN", help="Rows alike in it are learnt from or held out together.")
    ] = None,
    bins: Annotated[int | None, option("--bins", help="Cut a number into so many classes at its quantiles.")] = None,
    kind: Annotated[
        Text,
        option("--kind", metavar="cnn|mlp|noisy|FOLDER", help="Network; noisy: of latents; FOLDER: a transformers one. [cnn]"),
    ] = None,
    widths: Annotated[Text, option("--widths", metavar="N,N,...", help="Channels or hidden layers. [the paper's]")] = None,
    model: Annotated[Text, option("--model", help="Whose latents --kind noisy learns from. [pocket]")] = None,
    embedder: Annotated[Text, option("--embedder", metavar="FOLDER", help="CLIP of --kind mlp. [pocket-clip]")] = None,
    epochs: Annotated[int | None, option("--epochs", help="At most. [100]")] = None,
    batch_size: Annotated[int | None, option("--batch-size", help="Pictures per step of Adam. [64]")] = None,
    lr: Annotated[float | None, option("--lr", help="Adam's learning rate. [0.001]")] = None,
    size: Annotated[int | None, option("--size", help="Rows and columns to read at. [64, or the embedder's]")] = None,
    patience: Annotated[int | None, option("--patience", help="Epochs without a better one that end it. [20]")] = None,
    skip_bad: Annotated[bool | None, option("--skip-bad", help="Leave bad rows out, and list them.")] = None,
    device: Device = None,
    out: Out = None,
    seed: Seed = None,
    config: Config = None,
    print_config: PrintConfig = False,
    quiet: Quiet = None,
    as_json: Json = None,
) -> None:
    """Fit calibrated classifiers p(y|x) of labels. DIR gets the classifiers, metrics.json, reliability.png, confusion.png."""
    request = Request.of(context, OPTIONS)
    resolved = resolve_fit(request.options)
    if request.only_prints(resolved):
        return
    manifest = condition_fit(resolved, request.words, request.quiet)
    several = len(manifest["labels"]) > 1
    places = [f"{resolved.out}/{label}" for label in manifest["labels"]] if several else [str(resolved.out)]
    request.answer(manifest["summary"], describe(manifest), f"classifier: {' '.join(places)}")


condition.command("train")(train)
condition.command("sample")(sample)
