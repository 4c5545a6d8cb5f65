"""A checkpoint in one file, as people share them: a .safetensors in the layout of its authors, read by diffusers' own
``from_single_file``. What the parts are is said by a folder (or hub id) of their configurations:

    FILE.safetensors=FOLDER    of the model it was made from, say; its weights are not needed
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from tilting.errors import TiltingError
from tilting.models.families import INDEX, in_one_file, read_json


def check_one_file(name: str) -> str:
    """FILE=CONFIGURATION of a model's name; reads no weight.

    Raises:
        TiltingError: for a file of another kind, none, or one whose configuration is neither here nor at the hub.
    """
    alone = in_one_file(name)
    if alone is None:
        raise TiltingError(f"a model in one file is read from .safetensors only, which {name!r} is not")
    file, config = alone
    if not Path(file).is_file():
        raise TiltingError(f"there is no file {file!r}, which the model names")
    _check_header(file)
    if not config:
        raise TiltingError(
            f"{file!r} holds weights alone: give the diffusers folder or hub id of its configuration too, as {file}=FOLDER"
        )
    if not (Path(config) / INDEX).is_file() and (
        Path(config).exists() or config.count("/") != 1 or config.startswith((".", "/"))
    ):
        raise TiltingError(f"{config!r}, the configuration of {file!r}, is no diffusers folder: it has no {INDEX}")
    read_json(config)
    return f"{file}={config}"


def _check_header(file: str) -> None:
    """Refuse what is no safetensors file, or a LoRA. Raises TiltingError."""
    try:
        with safe_open(file, framework="np") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise TiltingError(f"the file {file!r} is no safetensors file: {str(error).splitlines()[0]}") from error
    if all("lora" in name.lower() or name.endswith(".alpha") for name in names):
        raise TiltingError(f"{file!r} is not a whole model in one file, but a LoRA, which is given by --lora")
