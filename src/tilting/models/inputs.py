"""Inputs of a pipeline besides its prompts, validated by its class's source and its folder's JSON before weights are read.

    --input guidance_rescale=0.7 --input image=cat.png      NAME=VALUE; what names a picture's file becomes the picture
    --height --width --frames --mask --controlnet --ip-adapter

A text-to-image folder that is given a picture, a mask or a ControlNet is loaded as its family's pipeline for those.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting.errors import TiltingError
from tilting.features.picture import mask_of, open_rgb, upright
from tilting.features.video import open_frames
from tilting.lazy import torch
from tilting.models.families import CONFIG, kind_of, read_json, usual
from tilting.models.names import find_model
from tilting.models.pipeline_class import (
    REQUIRED,
    RESERVED,
    PipelineClass,
    check_arguments,
    check_share,
    from_pictures,
    pipeline_class,
    steerable_class,
    steps_left,
)

COMPONENT_INPUTS = ("controlnet", "ip_adapter", "ip_adapter_scale")
"""Inputs that are parts of the pipeline, not of its call."""
VARIANTS = ("", "Img2Img", "Inpaint", "Inpainting", "ImageToVideo", "VideoToVideo")
"""What follows a family's name in those of its other pipelines."""
REQUIRED_INPUTS = (
    ("Inpaint|Fill", ("image", "mask_image")),
    ("Img2Img|ImageToVideo|Edit|Upscale|Pix2Pix|ImageVariation", ("image",)),
)
"""(words in a class's name, the inputs that it needs)."""
PICTURE = re.compile(r"image|mask|video|frame")
FLAGS = {
    "image": "--image FILE, with --mask, or --input image=FILE",
    "mask_image": "--mask FILE",
    "control_image": "--input control_image=FILE",
}
ORIENTATION = 0x0112
"""Of EXIF."""
BRIGHT = 128
"""What of a mask is drawn, as diffusers rounds it."""
MULTIPLE = 8
FRAMES = 257
"""The most frames of a video."""


def parse_inputs(words: Sequence[str]) -> dict[str, Any]:
    """Inputs by name from NAME=VALUE. Raises TiltingError for what is not so, and for a name that comes twice."""
    found: dict[str, Any] = {}
    for word in words:
        name, given, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not given or not name.isidentifier():
            raise TiltingError(f"an input is NAME=VALUE, not {word!r}")
        if name in found:
            raise TiltingError(f"the input {name!r} is given twice")
        found[name] = value_of(value)
    return found


def value_of(text: str) -> Any:
    """A number, a list, true, false or none from its text; another text is itself, and a picture's file stays its path."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, int | float | list | tuple) else text


OPTIONS = {
    "height": "height",
    "width": "width",
    "frames": "num_frames",
    "controlnet": "controlnet",
    "ip_adapter": "ip_adapter",
    "mask": "mask_image",
}
"""Options -> the inputs that they are."""
OF_ALL = ("height", "width", "num_frames")
"""Inputs that states have their shape of: the same for all images, and so no column of a table of prompts."""


def inputs_of_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that options ask for, by the fields' names; a picture beside a mask is the pipeline's, with its strength.
    Raises TiltingError."""
    inputs = parse_inputs(options.get("input") or ())
    for name, its in OPTIONS.items():
        value = options.get(name)
        if value is not None:
            if its in inputs:
                raise TiltingError(f"{its} is given by --input and by --{name.replace('_', '-')}: give it once")
            inputs[its] = value
    if options.get("mask") is not None and options.get("image") is not None:
        inputs.setdefault("image", options["image"])
        if options.get("strength") is not None:
            inputs.setdefault("strength", options["strength"])
    return inputs


def inputs_of_prompts(kind: str, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Prompt -> the inputs in the columns of its table that this pipeline takes. Raises TiltingError for two of one prompt."""
    cls, each = pipeline_class(kind), {}
    for prompt, known in zip(prompts, metadata, strict=False):
        own = () if cls is None else [name for name in cls.parameters if name not in (*RESERVED, *OF_ALL)]
        mine = {name: value for name, value in known.items() if name in own and value not in (None, "")}
        if each.setdefault(prompt, mine) != mine:
            raise TiltingError(f"the prompt {prompt!r} comes with different inputs: say in it how they differ")
    return {prompt: mine for prompt, mine in each.items() if mine}


def resolve_inputs(
    config: Any, options: Mapping[str, Any] | None = None, model: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs of all images, prompt -> its own) of a config, or of the options it is made of, checked.

    Raises:
        TiltingError: see `check_inputs`; nothing of a model but its json is read.
    """
    given = options if options is not None else {name: getattr(config, name, None) for name in FIELDS}
    name, inputs = model or config.model, inputs_of_options(given)
    metadata = given.get("metadata") or ()
    if not inputs and not metadata:
        return {}, {}
    source = find_model(name)
    kind = class_for(kind_of(source), list(inputs)) if inputs else kind_of(source)
    each = inputs_of_prompts(kind, given.get("prompts") or (), metadata)
    if inputs or each:
        for mine in each.values() or [{}]:
            check_scale(kind, {**inputs, **mine}, bool(given.get("negative_prompt")))
            made = check_inputs(source, {**inputs, **mine})
            check_share(made, {**inputs, **mine}, given.get("steps") or usual(source, made)[0])
    return inputs, each


def steps_run(config: Any) -> int:
    """The steps that a checked request makes: fewer than it asks for from a picture, its own or that of the pipeline."""
    inputs, each = resolve_inputs(config)
    if config.image is None and not inputs and not each:
        return config.steps
    kind, inputs = class_for(kind_of(find_model(config.model)), list(inputs)), inputs | next(iter(each.values()), {})
    strength, cls = config.strength, pipeline_class(kind)
    if config.image is None or config.mask is not None:  # a picture with a mask is the pipeline's own
        if cls is None or from_pictures(kind) != kind or inputs.get("denoising_start") is not None:
            return config.steps
        strength = inputs.get("strength", cls.parameters["strength"])
    return steps_left(kind, config.steps, strength if isinstance(strength, int | float) else 1.0)


def check_scale(kind: str, inputs: Mapping[str, Any], negative: bool) -> None:
    """Refuse the input that --cfg sets (`tilting.models.pipeline.Pipeline.arguments`). Raises TiltingError."""
    cls = pipeline_class(kind)
    true = None if cls is None else cls.parameters.get("true_cfg_scale")
    own = true is not None and (negative or "true_cfg_scale" in inputs or (isinstance(true, int | float) and true > 1))
    name = "true_cfg_scale" if own else "guidance_scale"
    if name in inputs:
        raise TiltingError(f"the input {name!r} of a {kind} is cfg here: give --cfg {inputs[name]}")


FIELDS = ("input", "image", "prompts", "metadata", "negative_prompt", "steps", "strength", *OPTIONS)


SHOWN = ("image", "control_image", "ip_adapter_image", "video")
"""The inputs that are shown as what an image was made of: the first that there is."""


def input_pictures(config: Mapping[str, Any]) -> dict[str, Path]:
    """Prompt -> the file of the picture that its images were made of, where it is still there.

    Args:
        config: the options of a run by name, as its manifest has them.
    """
    given = {name.replace("-", "_"): value for name, value in config.items()}
    try:
        inputs, each = resolve_inputs(None, given, str(given.get("model")))
    except TiltingError:  # a model, or a picture, that is gone
        inputs, each = {}, {}
    inputs = {"image": given.get("image"), **inputs}
    found = {}
    for prompt in given.get("prompts") or ():
        mine = {**inputs, **each.get(prompt, {})}
        files = [mine[name] for name in SHOWN if isinstance(mine.get(name), str)]
        if files and Path(files[0]).is_file():
            found[prompt] = Path(files[0])
    return found


def files_of(inputs: Mapping[str, Any], each: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """The files that inputs name."""
    named = [(name, value) for one in (inputs, *each.values()) for name, value in one.items()]
    files = [value for name, value in named if isinstance(value, str) and (PICTURE.search(name) or name in COMPONENT_INPUTS)]
    return list(map(Path, files))


def class_for(kind: str, names: Sequence[str]) -> str:
    """The class that takes these inputs: this one, or another of its family. Raises TiltingError for one that is refused."""
    cls = pipeline_class(kind)
    given = {name for name in names if name not in COMPONENT_INPUTS}
    control = "controlnet" in names
    if cls is None or (not control and given <= set(cls.parameters) and not (cls.unsupported and given)):
        return kind
    stem = kind.removesuffix("Pipeline").removesuffix("ControlNet")
    for other in VARIANTS:
        found = pipeline_class(f"{stem}{'ControlNet' * control}{other}Pipeline")
        if found is None or found.unsupported:
            continue
        if given <= {*found.parameters, *(["control_image"] if control else [])}:
            return found.name
    if control and "controlnet" not in cls.components:
        raise TiltingError(f"there is no ControlNet pipeline of a {kind} in the installed diffusers")
    return kind


def check_inputs(source: str, inputs: Mapping[str, Any]) -> str:
    """The class that takes these inputs. Raises TiltingError for what does not fit it, or another of them; reads no weight."""
    own = kind_of(source)
    kind = class_for(own, list(inputs))
    cls = steerable_class(kind)
    inputs = with_call_names(cls, inputs)
    check_arguments(kind, cls.parameters, {name: value for name, value in inputs.items() if name not in COMPONENT_INPUTS})
    for words, names in REQUIRED_INPUTS:
        for name in names:
            if re.search(words, kind) and name in cls.parameters and inputs.get(name) is None:
                what = "a mask" if "mask" in name else "a picture"
                raise TiltingError(f"a {kind} needs {what}: give {FLAGS.get(name, name)}")
    for name, default in cls.parameters.items():
        if default is REQUIRED and inputs.get(name) is None and PICTURE.search(name):
            raise TiltingError(f"a {kind} needs the input {name!r}: give --input {name}=FILE")
    if "ControlNet" in kind and not any(inputs.get(name) is not None for name in ("control_image", "image")):
        raise TiltingError(f"a {kind} needs a picture for its ControlNet: give --input control_image=FILE")
    if inputs.get("controlnet") is not None:
        check_controlnet(source, cls, str(inputs["controlnet"]))
    for side in ("height", "width"):
        value = inputs.get(side)
        if value is not None and (not isinstance(value, int) or value < MULTIPLE or value % MULTIPLE):
            raise TiltingError(f"{side} must be a multiple of {MULTIPLE}, not {value}")
    check_frames(source, inputs.get("num_frames"))
    check_pictures(inputs)
    return kind


def with_call_names(cls: PipelineClass, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs, a ControlNet's picture under the name that this call has for it."""
    inputs = dict(inputs)
    unknown = "control_image" in inputs and "control_image" not in cls.parameters
    if unknown and "image" in cls.parameters and "image" not in inputs:
        inputs["image"] = inputs.pop("control_image")
    return inputs


def check_controlnet(source: str, cls: PipelineClass, folder: str) -> str:
    """The class of a ControlNet that fits. Raises TiltingError for one of another model."""
    config = read_json(folder, CONFIG)
    kind = str(config.get("_class_name"))
    said = cls.components.get("controlnet", "")
    if said and kind not in re.findall(r"\w+", said):
        raise TiltingError(f"the ControlNet {folder!r} is of another family: a {cls.name} takes no {kind}")
    network = "unet" if "unet" in cls.components else "transformer"
    own = read_json(source, f"{network}/{CONFIG}")
    for name in ("cross_attention_dim", "joint_attention_dim", "in_channels", "caption_projection_dim"):
        if name in config and name in own and config[name] != own[name]:
            raise TiltingError(f"the ControlNet {folder!r} is of another model: its {name} is {config[name]}, not {own[name]}")
    return kind


def check_frames(source: str, frames: Any) -> None:
    """Refuse a number of frames that the autoencoder does not make. Raises TiltingError."""
    if frames is None:
        return
    if not isinstance(frames, int) or not 1 <= frames <= FRAMES:
        raise TiltingError(f"frames must be from 1 to {FRAMES}, not {frames}")
    index = read_json(source)
    config = read_json(source, f"vae/{CONFIG}") if isinstance(index.get("vae"), list) and index["vae"][0] else {}
    each = temporal(config)
    if (frames - 1) % each:
        near = [n for n in ((frames - 1) // each * each + 1, math.ceil((frames - 1) / each) * each + 1) if n <= FRAMES]
        raise TiltingError(f"frames must be {each}k + 1, as {' or '.join(map(str, near))}, not {frames}")


def temporal(config: Mapping[str, Any]) -> int:
    """Frames to a latent's, of an autoencoder's configuration."""
    for name in ("scale_factor_temporal", "temporal_compression_ratio"):
        if isinstance(config.get(name), int):
            return config[name]
    for name in ("temperal_downsample", "spatio_temporal_scaling"):
        if isinstance(config.get(name), list):
            return 2 ** sum(map(bool, config[name]))
    return 1


def check_pictures(inputs: Mapping[str, Any]) -> None:
    """Read every picture that a file is given for, and refuse a mask of another size. Raises TiltingError."""
    sizes = {}
    for name, value in inputs.items():
        if name in COMPONENT_INPUTS or not PICTURE.search(name) or name in ("num_frames", "frame_rate"):
            continue
        picture = picture_of(name, value)
        sizes[name] = getattr(picture, "size", None)
    picture, mask = sizes.get("image"), sizes.get("mask_image")
    if isinstance(picture, tuple) and isinstance(mask, tuple) and picture != mask:
        shown = [f"{w}x{h}" for w, h in (mask, picture)]
        raise TiltingError(f"the mask is {shown[0]} and the picture {shown[1]}: give them in one size")


def picture_of(name: str, value: Any) -> Any:
    """A picture from its file, or of bytes, as pipelines take one, RGB and upright, or a mask in grey; other values as they
    are. Raises TiltingError for what is none, or a mask under which nothing is drawn."""
    made = _picture(name, value)
    if "mask" in name and hasattr(made, "getexif") and (brightest := max(made.convert("L").tobytes())) < BRIGHT:
        which = f"the file {value!r} of the input {name!r}" if isinstance(value, str) else f"the picture of the input {name!r}"
        raise TiltingError(f"{which} has nothing to draw: white is drawn, and its brightest pixel is {brightest} of 255")
    return made


def _picture(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_picture(name, one) for one in value)
    if str(getattr(value, "dtype", "")).removeprefix("torch.") == "uint8" and value.ndim > 2:  # diffusers takes it for floats
        return _of_bytes(value)
    mask = "mask" in name
    plain = ("L", "RGB") if mask else ("L",)
    if hasattr(value, "getexif") and (value.mode not in plain or value.getexif().get(ORIENTATION, 1) != 1):
        try:
            return mask_of(value) if mask else upright(value)
        except TiltingError as error:
            raise TiltingError(f"the picture of the input {name!r} {error}") from error
    if not isinstance(value, str | Path):
        return value
    if not Path(value).is_file():
        raise TiltingError(f"there is no file {str(value)!r}, which the input {name!r} names")
    try:
        if name.endswith("video"):
            return open_frames(value)
        return open_rgb(value, mask_of if mask else None)
    except TiltingError as error:
        raise TiltingError(f"the file {str(value)!r} of the input {name!r} {error}") from error


def _of_bytes(value: Any) -> Any:
    """Pictures of PIL from an array (..., h, w, 3 or 1), or a tensor (..., 3 or 1, h, w), of bytes."""
    from PIL.Image import fromarray

    value = value.movedim(-3, -1).cpu().numpy() if isinstance(value, torch.Tensor) else value
    if value.ndim > 3:
        return [_of_bytes(one) for one in value]
    return fromarray(value[..., 0] if value.shape[2:] == (1,) else value)


def pictures_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs with their pictures read."""
    pictures = {name for name in inputs if PICTURE.search(name) and name not in COMPONENT_INPUTS}
    return {name: picture_of(name, value) if name in pictures else value for name, value in inputs.items()}
