"""`tilting condition`: new controls from a small labelled data set (CTRL)."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tilting.cli.condition_sample import sample
from tilting.cli.condition_train import train
from tilting.cli.options import Config, Json, PrintConfig, Quiet, Seed, Text, option
from tilting.experiments.condition.fit import condition_fit, describe
from tilting.experiments.condition.fit_config import read_options, resolve_fit

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
    bins: Annotated[int | None, option("--bins", help="Cut a number into so many classes at its quantiles.")] = None,
    kind: Annotated[
        Text, option("--kind", metavar="cnn|mlp|FOLDER", help="Network; FOLDER is a transformers classifier. [cnn]")
    ] = None,
    widths: Annotated[Text, option("--widths", metavar="N,N,...", help="Channels or hidden layers. [the paper's]")] = None,
    embedder: Annotated[Text, option("--embedder", metavar="FOLDER", help="CLIP of --kind mlp. [pocket-clip]")] = None,
    epochs: Annotated[int | None, option("--epochs", help="At most. [100]")] = None,
    batch_size: Annotated[int | None, option("--batch-size", help="Pictures per step of Adam. [64]")] = None,
    lr: Annotated[float | None, option("--lr", help="Adam's learning rate. [0.001]")] = None,
    size: Annotated[int | None, option("--size", help="Rows and columns to read at. [64, or the embedder's]")] = None,
    patience: Annotated[int | None, option("--patience", help="Epochs without a better one that end it. [20]")] = None,
    skip_bad: Annotated[bool | None, option("--skip-bad", help="Leave bad rows out, and list them.")] = None,
    out: Annotated[Text, option("--out", metavar="DIR", help="Folder to write, or to go on with.")] = None,
    seed: Seed = None,
    config: Config = None,
    print_config: PrintConfig = False,
    quiet: Quiet = None,
    as_json: Json = None,
) -> None:
    """Fit calibrated classifiers p(y|x) of labels into DIR: classifier, metrics.json, reliability.png, confusion.png."""
    options = read_options(config) if config is not None else {}
    given = {
        "data": data, "label": label or None, "label-by": label_by, "bins": bins, "kind": kind, "widths": widths,
        "embedder": embedder, "epochs": epochs, "batch-size": batch_size, "lr": lr, "size": size, "patience": patience,
        "skip-bad": skip_bad, "out": out, "seed": seed, "quiet": quiet, "json": as_json,
    }  # fmt: skip
    options |= {key: value for key, value in given.items() if value is not None}
    resolved = resolve_fit(options)
    if print_config:
        return typer.echo(resolved.yaml(), nl=False)
    silent = bool(options.get("quiet"))
    manifest = condition_fit(resolved, ["tilting", *context.obj], quiet=silent)
    if options.get("json"):
        typer.echo(json.dumps(manifest["summary"], ensure_ascii=False))
    elif not silent:
        typer.echo(describe(manifest))
        typer.echo(f"classifier: {resolved.out}")


condition.command("train")(train)
condition.command("sample")(sample)
