"""`tilting evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilting.cli import options as given_by
from tilting.cli.options import Text, option
from tilting.cli.request import Request
from tilting.config.evaluate import OPTIONS, describe, resolve_evaluate


def evaluate(
    context: typer.Context,
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Folders of `tilting generate`.", show_default=False)
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
    config: given_by.Config = None,
    print_config: given_by.PrintConfig = False,
    quiet: given_by.Quiet = None,
    as_json: given_by.Json = None,
) -> None:
    """Measure what runs gained, and whether they gamed the reward. Judges, diversity, labels, distances and their floor."""
    request = Request.of(context, OPTIONS)
    resolved = resolve_evaluate(request.options)
    if request.only_prints(resolved):
        return
    from tilting.evaluation.run import evaluate as run

    metrics = run(resolved, request.words, request.quiet)
    summary = {key: metrics[key] for key in ("reference", "floor", "extractors")} | {"runs": metrics["summary"]}
    request.answer(summary, describe(metrics), f"report: {Path(resolved.out or '') / 'report.html'}")
