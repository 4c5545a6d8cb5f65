"""The options that several commands share: one name, one meaning, one line of help. All are None where they are not given."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tilting.errors import TiltingError

Text = str | None


def option(*names: str, help: str, metavar: str | None = None) -> Any:
    """An option that is None where it is not given."""
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.", show_default=False)]
PromptsFile = Annotated[Text, option("--prompts", metavar="FILE", help="Prompts: .txt, .jsonl, .csv, .parquet.")]
Model = Annotated[Text, option("--model", help="pocket, a diffusers folder, or a hub id. [pocket]")]
Reward = Annotated[
    list[str] | None, option("--reward", metavar="SPEC", help="NAME[:ARGUMENT][=WEIGHT], repeatable. [clip for pocket]")
]
Particles = Annotated[int | None, option("--particles", help="N, streams per image. [the method's]")]
Steps = Annotated[int | None, option("--steps", help="T, denoising steps. [the model's: 50]")]
Eta = Annotated[float | None, option("--eta", help="0 deterministic ... 1 ancestral. [the method's: 1]")]
Cfg = Annotated[float | None, option("--cfg", help="Guidance scale. [the model's: 4 for pocket]")]
NegativePrompt = Annotated[Text, option("--negative-prompt", help="Text of the unconditional branch. ['']")]
Images = Annotated[int | None, option("--images", help="Images per prompt. [1]")]
BatchSize = Annotated[int | None, option("--batch-size", help="Latents per denoiser call. [16]")]
Settings = Annotated[
    list[str] | None, option("--set", metavar="METHOD.FIELD=VALUE", help="A method's own setting, repeatable.")
]
Picture = Annotated[Text, option("--image", metavar="FILE", help="A picture to start from (SDEdit).")]
Strength = Annotated[float | None, option("--strength", help="Share of the steps drawn from --image, in (0, 1]. [0.6]")]
Seed = Annotated[int | None, option("--seed", help="Seed of the run. [0]")]
Config = Annotated[Text, option("--config", metavar="FILE", help="Options from YAML; the command line wins.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved YAML and stop.")]
Quiet = Annotated[bool | None, option("--quiet", help="No progress and no summary.")]
Json = Annotated[bool | None, option("--json", help="Print the summary as JSON.")]


def prompts_of(words: list[str] | None, file: str | None) -> list[str] | str | None:
    """Prompts as words or as a file, None if there are neither. Raises TiltingError if both are given."""
    if words and file is not None:
        raise TiltingError("prompts are given both as words and by --prompts: give one of them")
    return file if file is not None else words or None
