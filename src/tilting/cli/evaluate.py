"""`tilting evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tilting.cli.generate import Text, option
from tilting.experiments.evaluate.config import describe, read_options, resolve_evaluate


def evaluate(
    context: typer.Context,
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Folders of `tilting generate`.", show_default=False)
    ] = None,
    out: Annotated[Text, option("--out", metavar="DIR", help="Folder to write: metrics.json, report.html.")] = None,
    reference: Annotated[
        Text, option("--reference", metavar="RUN", help="A base run of another seed. [the base run of a seed of its own]")
    ] = None,
    reference_image: Annotated[Text, option("--reference-image", metavar="FILE", help="The picture of I-Gram.")] = None,
    clip: Annotated[Text, option("--clip", metavar="FOLDER", help="CLIP of CMMD, T-CLIP and I-Gram. [pocket-clip]")] = None,
    inception: Annotated[
        Text, option("--inception", metavar="FILE", help="Inception weights of FID. [pocket-judge's features]")
    ] = None,
    lpips: Annotated[
        Text, option("--lpips", metavar="FILE", help="LPIPS weights of diversity. [pocket-judge's features]")
    ] = None,
    vgg: Annotated[Text, option("--vgg", metavar="FILE", help="VGG weights of I-Gram's Gram features.")] = None,
    seed: Annotated[int | None, option("--seed", help="Of the halves of a reference. [0]")] = None,
    config: Annotated[Text, option("--config", metavar="FILE", help="Options from YAML; the command line wins.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved YAML and stop.")] = False,
    quiet: Annotated[bool | None, option("--quiet", help="No progress and no summary.")] = None,
    as_json: Annotated[bool | None, option("--json", help="Print the summary as JSON.")] = None,
) -> None:
    """Compare runs: reward, judges, diversity, distances to the base model and their floor, labels, and was it gamed?"""
    options = read_options(config) if config is not None else {}
    given = {
        "runs": runs or None, "out": out, "reference": reference, "reference-image": reference_image, "clip": clip,
        "inception": inception, "lpips": lpips, "vgg": vgg, "seed": seed, "quiet": quiet, "json": as_json,
    }  # fmt: skip
    options |= {key: value for key, value in given.items() if value is not None}
    resolved = resolve_evaluate(options)
    if print_config:
        return typer.echo(resolved.yaml(), nl=False)
    from tilting.experiments.evaluate.run import evaluate as run

    silent = bool(options.get("quiet"))
    metrics = run(resolved, ["tilting", *context.obj], quiet=silent)
    if options.get("json"):
        summary = {key: metrics[key] for key in ("reference", "floor", "extractors")} | {"runs": metrics["summary"]}
        typer.echo(json.dumps(summary))
    elif not silent:
        typer.echo(describe(metrics))
        typer.echo(f"report: {Path(resolved.out or '') / 'report.html'}")
