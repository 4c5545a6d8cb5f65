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
from tilting.models.shapes import (
    OURS,
    REQUIRED,
    Shape,
    check_inputs,
    check_share,
    enterable,
    from_pictures,
    shape_of,
    steps_left,
)

LOADED = ("controlnet", "ip_adapter", "ip_adapter_scale")
"""Inputs that are parts of the pipeline, not of its call."""
OTHERS = ("", "Img2Img", "Inpaint", "Inpainting", "ImageToVideo", "VideoToVideo")
"""What follows a family's name in those of its other pipelines."""
NEEDS = (("Inpaint|Fill", ("image", "mask_image")), ("Img2Img|ImageToVideo|Edit|Upscale|Pix2Pix|ImageVariation", ("image",)))
"""What pipelines need whose names hold these words."""
PICTURE = re.compile(r"image|mask|video|frame")
CALLED = {
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


def told_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that options ask for, by the fields' names; a picture beside a mask is the pipeline's, with its strength.
    Raises TiltingError."""
    told = parse_inputs(options.get("input") or ())
    for name, its in OPTIONS.items():
        value = options.get(name)
        if value is not None:
            if its in told:
                raise TiltingError(f"{its} is given by --input and by --{name.replace('_', '-')}: give it once")
            told[its] = value
    if options.get("mask") is not None and options.get("image") is not None:
        told.setdefault("image", options["image"])
        if options.get("strength") is not None:
            told.setdefault("strength", options["strength"])
    return told


def each_of(kind: str, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Prompt -> the inputs in the columns of its table that this pipeline takes. Raises TiltingError for two of one prompt."""
    shape, each = shape_of(kind), {}
    for prompt, known in zip(prompts, metadata, strict=False):
        takes = () if shape is None else [name for name in shape.takes if name not in (*OURS, *OF_ALL)]
        mine = {name: value for name, value in known.items() if name in takes and value not in (None, "")}
        if each.setdefault(prompt, mine) != mine:
            raise TiltingError(f"the prompt {prompt!r} comes with different inputs: say in it how they differ")
    return {prompt: mine for prompt, mine in each.items() if mine}


def asked(config: Any, options: Mapping[str, Any] | None = None, model: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs of all images, prompt -> its own) of a config, or of the options it is made of, checked.

    Raises:
        TiltingError: see `check_told`; nothing of a model but its json is read.
    """
    given = options if options is not None else {name: getattr(config, name, None) for name in ASKED}
    name, told = model or config.model, told_of(given)
    metadata = given.get("metadata") or ()
    if not told and not metadata:
        return {}, {}
    source = find_model(name)
    kind = chosen(kind_of(source), list(told)) if told else kind_of(source)
    each = each_of(kind, given.get("prompts") or (), metadata)
    if told or each:
        for mine in each.values() or [{}]:
            check_scale(kind, {**told, **mine}, bool(given.get("negative_prompt")))
            made = check_told(source, {**told, **mine})
            check_share(made, {**told, **mine}, given.get("steps") or usual(source, made)[0])
    return told, each


def steps_run(config: Any) -> int:
    """The steps that a checked request makes: fewer than it asks for from a picture, its own or that of the pipeline."""
    told, each = asked(config)
    if config.image is None and not told and not each:
        return config.steps
    kind, told = chosen(kind_of(find_model(config.model)), list(told)), told | next(iter(each.values()), {})
    strength, shape = config.strength, shape_of(kind)
    if config.image is None or config.mask is not None:  # a picture with a mask is the pipeline's own
        if shape is None or from_pictures(kind) != kind or told.get("denoising_start") is not None:
            return config.steps
        strength = told.get("strength", shape.takes["strength"])
    return steps_left(kind, config.steps, strength if isinstance(strength, int | float) else 1.0)


def check_scale(kind: str, told: Mapping[str, Any], negative: bool) -> None:
    """Refuse the input that --cfg is, which would go unheard (`tilting.models.pipeline.Pipeline.told`). Raises TiltingError."""
    shape = shape_of(kind)
    true = None if shape is None else shape.takes.get("true_cfg_scale")
    own = true is not None and (negative or "true_cfg_scale" in told or (isinstance(true, int | float) and true > 1))
    name = "true_cfg_scale" if own else "guidance_scale"
    if name in told:
        raise TiltingError(f"the input {name!r} of a {kind} is cfg here: give --cfg {told[name]}")


ASKED = ("input", "image", "prompts", "metadata", "negative_prompt", "steps", "strength", *OPTIONS)


SHOWN = ("image", "control_image", "ip_adapter_image", "video")
"""The inputs that are shown as what an image was made of: the first that there is."""


def input_pictures(config: Mapping[str, Any]) -> dict[str, Path]:
    """Prompt -> the file of the picture that its images were made of, where it is still there.

    Args:
        config: the options of a run by name, as its manifest has them.
    """
    given = {name.replace("-", "_"): value for name, value in config.items()}
    try:
        told, each = asked(None, given, str(given.get("model")))
    except TiltingError:  # a model, or a picture, that is gone
        told, each = {}, {}
    told = {"image": given.get("image"), **told}
    found = {}
    for prompt in given.get("prompts") or ():
        mine = {**told, **each.get(prompt, {})}
        files = [mine[name] for name in SHOWN if isinstance(mine.get(name), str)]
        if files and Path(files[0]).is_file():
            found[prompt] = Path(files[0])
    return found


def files_of(told: Mapping[str, Any], each: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """The files that inputs name."""
    named = [(name, value) for one in (told, *each.values()) for name, value in one.items()]
    return [Path(value) for name, value in named if isinstance(value, str) and (PICTURE.search(name) or name in LOADED)]


def chosen(kind: str, names: Sequence[str]) -> str:
    """The class that takes these inputs: this one, or another of its family. Raises TiltingError for one that is refused."""
    shape = shape_of(kind)
    asked = {name for name in names if name not in LOADED}
    control = "controlnet" in names
    if shape is None or (not control and asked <= set(shape.takes) and not (shape.why and asked)):
        return kind
    stem = kind.removesuffix("Pipeline").removesuffix("ControlNet")
    for other in OTHERS:
        found = shape_of(f"{stem}{'ControlNet' * control}{other}Pipeline")
        if found is not None and not found.why and asked <= {*found.takes, *(["control_image"] if control else [])}:
            return found.name
    if control and "controlnet" not in shape.parts:
        raise TiltingError(f"there is no ControlNet pipeline of a {kind} in the installed diffusers")
    return kind


def check_told(source: str, told: Mapping[str, Any]) -> str:
    """The class that takes these inputs. Raises TiltingError for what does not fit it, or another of them; reads no weight."""
    own = kind_of(source)
    kind = chosen(own, list(told))
    shape = enterable(kind)
    told = renamed(shape, told)
    check_inputs(kind, shape.takes, {name: value for name, value in told.items() if name not in LOADED})
    for words, names in NEEDS:
        for name in names:
            if re.search(words, kind) and name in shape.takes and told.get(name) is None:
                what = "a mask" if "mask" in name else "a picture"
                raise TiltingError(f"a {kind} needs {what}: give {CALLED.get(name, name)}")
    for name, default in shape.takes.items():
        if default is REQUIRED and told.get(name) is None and PICTURE.search(name):
            raise TiltingError(f"a {kind} needs the input {name!r}: give --input {name}=FILE")
    if "ControlNet" in kind and not any(told.get(name) is not None for name in ("control_image", "image")):
        raise TiltingError(f"a {kind} needs a picture for its ControlNet: give --input control_image=FILE")
    if told.get("controlnet") is not None:
        check_controlnet(source, shape, str(told["controlnet"]))
    for side in ("height", "width"):
        value = told.get(side)
        if value is not None and (not isinstance(value, int) or value < MULTIPLE or value % MULTIPLE):
            raise TiltingError(f"{side} must be a multiple of {MULTIPLE}, not {value}")
    check_frames(source, told.get("num_frames"))
    check_pictures(told)
    return kind


def renamed(shape: Shape, told: Mapping[str, Any]) -> dict[str, Any]:
    """A ControlNet's picture under the name that this call has for it."""
    told = dict(told)
    if "control_image" in told and "control_image" not in shape.takes and "image" in shape.takes and "image" not in told:
        told["image"] = told.pop("control_image")
    return told


def check_controlnet(source: str, shape: Shape, folder: str) -> str:
    """The class of a ControlNet that fits. Raises TiltingError for one of another model."""
    config = read_json(folder, CONFIG)
    kind = str(config.get("_class_name"))
    said = shape.parts.get("controlnet", "")
    if said and kind not in re.findall(r"\w+", said):
        raise TiltingError(f"the ControlNet {folder!r} is of another family: a {shape.name} takes no {kind}")
    network = "unet" if "unet" in shape.parts else "transformer"
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


def check_pictures(told: Mapping[str, Any]) -> None:
    """Read every picture that a file is given for, and refuse a mask of another size. Raises TiltingError."""
    sizes = {}
    for name, value in told.items():
        if name in LOADED or not PICTURE.search(name) or name in ("num_frames", "frame_rate"):
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


def pictures_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs with their pictures read."""
    return {
        name: picture_of(name, value) if PICTURE.search(name) and name not in LOADED else value for name, value in told.items()
    }
