"""Names of models, and their defaults. Torch-free."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from tilting.errors import TiltingError
from tilting.features.packaged import POCKET
from tilting.models.families import INDEX, defaults_of, family_of, has_loader, in_one_file, kind_of
from tilting.models.one_file import check_one_file
from tilting.models.pipeline_class import steerable_class

MODELS = {"pocket": "a small Stable Diffusion of 64x64 drawings, in the package: 444 concepts, 3 styles, 12 backgrounds"}
DEFAULTS = {"pocket": (50, 4.0)}
"""Steps and guidance scale of a model where they are unset."""


def defaults(name: str) -> tuple[int, float]:
    """The steps and guidance scale of a model where they are unset: its own, or its family's."""
    return DEFAULTS[name] if name in DEFAULTS else defaults_of(find_model(name))


def find_model(name: str) -> str:
    """The folder, hub id or file (as FILE=CONFIGURATION) behind a model's name, checked before anything is loaded.

    Raises:
        TiltingError: for a name that is neither built in, nor a folder, nor a file, nor of the form owner/name.
    """
    if not isinstance(name, str):
        raise TiltingError(
            f"a model is a name, a folder or a hub id, not a {type(name).__name__}: save a pipeline by save_pretrained first"
        )
    if name == "pocket":
        return str(POCKET)
    if Path(name).is_dir():
        if not (Path(name) / INDEX).is_file():
            family_of(name)
        return name
    if in_one_file(name) or Path(name).is_file():
        return check_one_file(name)
    if name.count("/") == 1 and not name.startswith((".", "/")) and all(name.split("/")):
        return name
    near = f"; did you mean {', '.join(map(repr, found))}?" if (found := get_close_matches(name, MODELS, n=1)) else ""
    raise TiltingError(
        f"unknown model {name!r}: known are {', '.join(MODELS)}, a diffusers folder, a .safetensors file, "
        f"or a hub id like owner/name{near}"
    )


def check_plain(name: str, what: str) -> None:
    """Refuse another model than Stable Diffusion 1.x and 2.x by its index, before a weight is read. Raises TiltingError.

    Args:
        name: of the model.
        what: is for those alone, in the plural.
    """
    if name not in MODELS and kind_of(find_model(name)) != "StableDiffusionPipeline":
        raise TiltingError(f"{what} are for Stable Diffusion 1.x and 2.x, which {name!r} is not")


def check_pipeline(name: str, what: str) -> None:
    """Refuse a model that is no pipeline of diffusers, or one that cannot be steered, by its index. Raises TiltingError.

    Args:
        name: of the model.
        what: is of pipelines alone, in the plural.
    """
    kind = kind_of(find_model(name))
    if has_loader(kind):
        raise TiltingError(f"{what} are of diffusers' pipelines, which {name!r} is not")
    steerable_class(kind)
