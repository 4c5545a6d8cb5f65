"""The options that several commands share: one name, one meaning, one check, one line of help.

Each is a type: a config that has the option says ``steps: Steps``. Defaults stand with the config; ``Option(default=...)`` says
what one is that depends on others.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from typing_extensions import Doc

from tilting.config.picture import open_picture
from tilting.config.prompts import check_prompts, metadata_of
from tilting.declare import Alias, Check, Metavar, Option
from tilting.errors import TiltingError, nearest
from tilting.features.video import check_video
from tilting.models.inputs import FRAMES, parse_inputs
from tilting.models.lora_file import parse_lora, parse_window
from tilting.models.names import MODELS, find_model
from tilting.models.placement import check_device, check_precision
from tilting.rewards.spec import check_rewards


def check_model(name: str, value: str) -> str:
    """The name of an existing model, or of one on the hub. Raises TiltingError with the nearest name."""
    from pathlib import Path

    if value not in MODELS and "/" not in value and not Path(value).is_dir():
        near = nearest(value, MODELS)
        if "did you mean" in near:
            raise TiltingError(f"unknown model {value!r}{near}")
    find_model(value)
    return value


def check_cfg(name: str, value: float) -> float:
    """A CFG scale above 0; others would ignore or negate the prompt. Raises TiltingError."""
    if value <= 0:
        raise TiltingError(f"{name} must be above 0, not {value:g}: 1 is the prompt without guidance")
    return value


def check_eta(name: str, value: float) -> float:
    """From 0 to 1. Raises TiltingError."""
    if not 0 <= value <= 1:
        raise TiltingError(f"{name} must be between 0 and 1, not {value:g}")
    return value


def check_strength(name: str, value: float) -> float:
    """Above 0 and at most 1. Raises TiltingError."""
    if not 0 < value <= 1:
        raise TiltingError(f"{name} must be above 0 and at most 1, not {value:g}")
    return value


def _prompts(name: str, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(check_prompts(value))


def _picture(name: str, value: str) -> str:
    open_picture(value)
    return value


def loras(name: str, value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        parse_lora(one)
    return value


def _seeds(name: str, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    twice = [seed for seed in value if value.count(seed) > 1] if isinstance(value, tuple) else []
    if twice:
        raise TiltingError(f"{name} {twice[0]} is given twice: give it once")
    return value


def _only(name: str, value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        if not one.rpartition(":")[0] or not one.rpartition(":")[2].isdigit():
            raise TiltingError(f"{name} takes PROMPT:INDEX, such as 0:2, the third image of the first prompt, not {one!r}")
    return value


def _reward_frames(name: str, value: str) -> str:
    if value in ("all", "first", "middle") or (value.isdecimal() and 1 <= int(value) <= FRAMES):
        return value
    raise TiltingError(f"{name} must be all, first, middle, or a number of frames from 1 to {FRAMES}, not {value!r}")


def _format(name: str, value: str) -> str:
    if value == "mp4":
        check_video("--format mp4")
    return value


def _window(name: str, value: str) -> str:
    parse_window(value)
    return value


Prompts = Annotated[tuple[str, ...], Option(positional="PROMPT"), Check(_prompts), Doc("What to draw.")]
Metadata = Annotated[
    tuple[Any, ...],
    Option(file=True),
    Check(lambda name, value: metadata_of(value)),
    Doc("Metadata of the prompts, a mapping for each, for rewards that use it."),
]
Model = Annotated[
    str, Check(check_model), Doc("pocket, a diffusers folder, a hub id, or FILE.safetensors=FOLDER of its config.")
]
Reward = Annotated[
    tuple[str, ...],
    Metavar("SPEC"),
    Check(check_rewards),
    Option(default="clip for pocket"),
    Doc("NAME[:ARGUMENT][=WEIGHT], repeatable."),
]
Particles = Annotated[int | None, Ge(1), Option(default="the method's"), Doc("N, particles per image.")]
Steps = Annotated[int, Ge(1), Le(10_000), Option(default="the model's: 50"), Doc("T, denoising steps.")]
Eta = Annotated[float, Check(check_eta), Option(default="the method's: 1"), Doc("0 deterministic ... 1 ancestral.")]
Sde = Annotated[
    Literal["posterior", "cps", "euler"], Doc("Noise of a step: DDIM's posterior, Flow-CPS's cps, or Flow-GRPO's euler.")
]
Cfg = Annotated[float, Check(check_cfg), Option(default="the model's: 4 for pocket"), Doc("Guidance scale.")]
NegativePrompt = Annotated[str, Alias("negative"), Option(default="''"), Doc("Text of the unconditional branch.")]
LongPrompts = Annotated[
    Literal["cut", "chunk"] | None,
    Check(lambda name, value: None if value == "cut" else value),
    Option(default="cut"),
    Doc("Prompts longer than CLIP's limit: cut them, or encode them in chunks."),
]
Images = Annotated[int, Ge(1), Le(1_000_000), Doc("Images per prompt.")]
BatchSize = Annotated[int, Ge(1), Doc("Latents per denoiser call.")]
Picture = Annotated[str | None, Metavar("FILE"), Check(_picture), Doc("A picture to start from (SDEdit).")]
Strength = Annotated[
    float | None,
    Check(check_strength),
    Option(default="0.6"),
    Doc("SDEdit strength in (0, 1]: the share of the steps that are denoised."),
]
Inputs = Annotated[
    tuple[str, ...],
    Metavar("NAME=VALUE"),
    Check(lambda name, value: tuple(value) if parse_inputs(value) else ()),
    Doc("Another input of the model's pipeline, repeatable; pictures as files."),
]
Side = Annotated[int | None, Ge(8), Option(default="the model's"), Doc("In pixels.")]
Frames = Annotated[int | None, Ge(1), Le(FRAMES), Option(default="the model's"), Doc("Frames of a video.")]
RewardFrames = Annotated[
    str,
    Metavar("all|first|middle|N"),
    Check(_reward_frames),
    Doc("Frames of a video that image rewards score; N: evenly spaced."),
]
Controlnet = Annotated[str | None, Metavar("DIR"), Doc("A ControlNet; its picture is --input control_image=FILE.")]
IpAdapter = Annotated[str | None, Metavar("DIR"), Doc("An IP-Adapter; its picture is --input ip_adapter_image=FILE.")]
Mask = Annotated[str | None, Metavar("FILE"), Doc("Inpainting mask: white where --image is redrawn.")]
Lora = Annotated[tuple[str, ...], Metavar("DIR[=SCALE]"), Check(loras), Doc("A LoRA to apply, repeatable.")]
LoraSteps = Annotated[
    str | None, Metavar("FIRST:LAST"), Check(_window), Option(default="all"), Doc("Steps in which LoRAs are active.")
]
Device = Annotated[str, Metavar("NAME"), Check(lambda name, value: check_device(value)), Doc("auto, cpu, cuda, cuda:N or mps.")]
RewardDevice = Annotated[
    str | None,
    Metavar("NAME"),
    Check(lambda name, value: check_device(value, name)),
    Option(default="the model's"),
    Doc("Device of rewards; final scores are then computed beside the next group."),
]
Split = Annotated[Literal["images", "particles"], Doc("What several processes divide: images, or the particles of each image.")]
Precision = Annotated[
    str, Check(lambda name, value: check_precision(value)), Doc("Precision of the network: fp32, fp16 or bf16.")
]
Out = Annotated[str | None, Metavar("DIR"), Option(letter="o"), Doc("Folder to write, or to resume.")]
Seed = Annotated[int, Doc("Seed of the run.")]
Seeds = Annotated[
    int | tuple[int, ...],
    Metavar("A,B,..."),
    Check(_seeds),
    Doc("Seed of the run; with several, every prompt is drawn with each."),
]
Only = Annotated[
    tuple[str, ...],
    Metavar("PROMPT:INDEX"),
    Check(_only),
    Doc("Draw (again) this image only; PROMPT is a text or a number from 0; repeatable."),
]
Trace = Annotated[bool, Doc("Record how steering proceeds: trace.html, trace.png.")]
TraceEvery = Annotated[int, Ge(1), Doc("Steps between the pictures of --trace.")]
Format = Annotated[
    Literal["png", "jpeg", "webp", "gif", "mp4"] | None,
    Check(_format),
    Option(default="png"),
    Doc("Image format; jpeg is lossy, webp lossless. Videos: png, webp, gif or mp4."),
]
Settings = Annotated[
    tuple[tuple[str, Any], ...], Metavar("METHOD.FIELD=VALUE"), Option("set"), Doc("A method's own setting, repeatable.")
]
Unused = Annotated[tuple[str, ...], Option(internal=True), Doc("Options that were given and have no use in this run.")]
