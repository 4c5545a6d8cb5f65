"""The options that `tilting finetune` and `tilting doctor` share, and how they become a config."""

from __future__ import annotations

from typing import Annotated, Any

from tilting.cli.options import Text, option
from tilting.errors import TiltingError
from tilting.experiments.finetune_config import FinetuneConfig, read_yaml, resolve_finetune
from tilting.experiments.settings import parse_setting

Objective = Annotated[Text, option("--objective", help="draft, draft-k, draft-lv, refl, ddpo, grpo, adjoint... [draft-lv]")]
TrainSteps = Annotated[int | None, option("--train-steps", help="Training steps. [200]")]
BatchSize = Annotated[int | None, option("--batch-size", help="Images per training step, over all processes. [4]")]
Accumulate = Annotated[int | None, option("--accumulate", help="Parts of a batch, made in turn to save memory. [1]")]
Eta = Annotated[float | None, option("--eta", help="0 deterministic ... 1 ancestral. [what the objective needs]")]
Rate = Annotated[float | None, option("--lr", help="Learning rate. [4e-4]")]
Rank = Annotated[int | None, option("--rank", help="Of the LoRA. [8]")]
LoraParts = Annotated[Text, option("--parts", metavar="A,B", help="Layers it changes: attn2, ff, attn1. [attn2,ff]")]
WeightDecay = Annotated[float | None, option("--weight-decay", help="Decoupled, of the LoRA. [0.1]")]
Clip = Annotated[float | None, option("--clip", help="Largest norm of the gradient. [1]")]
Decay = Annotated[Text, option("--lr-decay", help="constant, or sqrt (for long runs). [constant]")]
Precision = Annotated[Text, option("--precision", help="Of the base model: fp32 or bf16; the LoRA is fp32. [fp32]")]
Settings = Annotated[
    list[str] | None, option("--set", metavar="OBJECTIVE.FIELD=VALUE", help="An objective's own setting, repeatable.")
]
InitLora = Annotated[Text, option("--init-lora", metavar="DIR", help="A LoRA to train further.")]

CheckpointEvery = Annotated[int | None, option("--checkpoint-every", help="Training steps between saves. [50]")]
SampleEvery = Annotated[int | None, option("--sample-every", help="Steps between samples; 0 for none. [50]")]
SampleImages = Annotated[int | None, option("--sample-images", help="Sampled images per prompt. [2]")]
Judge = Annotated[Text, option("--judge", metavar="SPEC", help="A held-out reward for the samples. [pocket-judge]")]
EarlyStop = Annotated[
    int | None, option("--early-stop", metavar="N", help="Stop when the judge has not risen for N samplings.")
]
Tracker = Annotated[list[str] | None, option("--tracker", help="wandb or trackio, beside tensorboard.")]
Out = Annotated[Text, option("--out", metavar="DIR", help="Folder to write, or to go on with.")]


def collect(given: dict[str, Any], config: str | None, settings: list[str] | None) -> tuple[dict[str, Any], FinetuneConfig]:
    """Options of the YAML, those of the command line over them, and the config they make."""
    options = read_yaml(config) if config is not None else {}
    if given["prompts"] and given["prompts-file"] is not None:
        raise TiltingError("prompts are given both as words and by --prompts: give one of them")
    file = given.pop("prompts-file")
    given["prompts"] = file if file is not None else given["prompts"] or None
    given["reward"] = given["reward"] or None
    options |= {key: value for key, value in given.items() if value is not None}
    options["set"] = {**(options.get("set") or {}), **dict(map(parse_setting, settings or []))}
    return options, resolve_finetune(options)
