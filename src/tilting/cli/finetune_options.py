"""The options that `tilting finetune` and `tilting doctor` share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from tilting.cli import options as given_by
from tilting.cli.options import Text, option

Objective = Annotated[Text, option("--objective", help="See `tilting objectives`. [draft-lv]")]
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
Learn = Annotated[Text, option("--learn", metavar="A,B", help="What is trained: lora, guidance, negative. [lora]")]
Diversity = Annotated[
    Text, option("--diversity", metavar="MEASURE=WEIGHT", help="Reward distance in a batch: euclid, clip, lpips:VGG.")
]
RewardDropout = Annotated[float | None, option("--reward-dropout", help="Share of units dropped inside the reward. [0]")]
Tracker = Annotated[list[str] | None, option("--tracker", metavar="NAME", help="wandb or trackio, repeatable. [tensorboard]")]

SHARED: dict[str, Any] = {
    "prompts": given_by.Prompts, "prompts_file": given_by.PromptsFile, "model": given_by.Model, "reward": given_by.Reward,
    "objective": Objective, "train_steps": TrainSteps, "steps": given_by.Steps, "batch_size": BatchSize,
    "accumulate": Accumulate, "eta": Eta, "cfg": given_by.Cfg, "negative_prompt": given_by.NegativePrompt, "lr": Rate,
    "rank": Rank, "parts": LoraParts, "weight_decay": WeightDecay, "clip": Clip, "lr_decay": Decay,
    "device": given_by.Device, "precision": given_by.Precision, "settings": Settings, "checkpoint_every": CheckpointEvery,
    "sample_every": SampleEvery, "sample_images": SampleImages, "judge": Judge, "early_stop": EarlyStop, "init_lora": InitLora,
    "learn": Learn, "diversity": Diversity, "reward_dropout": RewardDropout, "tracker": Tracker, "out": given_by.Out,
    "seed": given_by.Seed, "config": given_by.Config, "quiet": given_by.Quiet, "as_json": given_by.Json,
}  # fmt: skip
"""By parameter, all None unless given."""


def takes(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes the shared options too: its context holds them, and it is called with its own parameters alone.
    One of its own stands in the place of a shared one of the same name."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    named = {parameter.name: parameter for parameter in own}
    shared = [
        named.get(name) or inspect.Parameter(name, own[0].kind, default=None, annotation=its) for name, its in SHARED.items()
    ]

    def called(**given: Any) -> None:
        command(**{parameter.name: given[parameter.name] for parameter in own})

    parameters = [own[0], *shared, *(parameter for parameter in own[1:] if parameter.name not in SHARED)]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called
