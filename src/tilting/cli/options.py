"""The options that several commands share: one name, one meaning, one line of help. All are None where they are not given."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Text = str | None


def option(*names: str, help: str, metavar: str | None = None) -> Any:
    """An option that is None where it is not given."""
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)]
PromptsFile = Annotated[Text, option("--prompts", metavar="FILE", help="Prompts: .txt, .jsonl, .csv, .parquet.")]
Model = Annotated[Text, option("--model", help="pocket, a diffusers folder, or a hub id. [pocket]")]
Reward = Annotated[
    list[str] | None, option("--reward", metavar="SPEC", help="NAME[:ARGUMENT][=WEIGHT], repeatable. [clip for pocket]")
]
Method = Annotated[Text, option("--method", help="See `tilting methods`. [base]")]
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
Lora = Annotated[list[str] | None, option("--lora", metavar="DIR[=SCALE]", help="A LoRA to draw with, repeatable.")]
LoraSteps = Annotated[Text, option("--lora-steps", metavar="FIRST:LAST", help="Steps in which LoRAs are on. [all]")]
Device = Annotated[Text, option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps. [auto]")]
Precision = Annotated[Text, option("--precision", help="Of the network: fp32, fp16 or bf16. [fp32]")]
Out = Annotated[Text, option("--out", metavar="DIR", help="Folder to write, or to go on with.")]
Seed = Annotated[int | None, option("--seed", help="Seed of the run. [0]")]
Config = Annotated[Text, option("--config", metavar="FILE", help="Options from YAML; the command line wins.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved YAML and stop.")]
Published = Annotated[
    bool | None, option("--published", help="Settings, steps and cfg of the method's paper; --set goes over them.")
]
Quiet = Annotated[bool | None, option("--quiet", help="No progress and no summary.")]
Json = Annotated[bool | None, option("--json", help="Print the summary as JSON.")]
