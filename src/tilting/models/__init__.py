"""Models: what draws. `load` gives one by name, folder or hub id; importing this room imports neither torch nor diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tilting.errors import TiltingError
from tilting.models.words import POCKET

if TYPE_CHECKING:
    from tilting.models.stable_diffusion import StableDiffusion

MODELS = {"pocket": "a small Stable Diffusion of 64x64 drawings, in the package: 444 concepts, 3 styles, 12 backgrounds"}

USUAL = {"pocket": (50, 4.0)}
"""Steps and guidance scale of a model where they are unset."""


def usual(name: str) -> tuple[int, float]:
    """The steps and guidance scale that a model is usually run with; Stable Diffusion's 50 and 7.5 if it is not ours."""
    return USUAL.get(name, (50, 7.5))


def find_model(name: str) -> str:
    """The folder or hub id behind a model's name, checked before anything is loaded.

    Raises:
        TiltingError: for a name that is neither built in, nor a folder, nor of the form owner/name.
    """
    if name == "pocket":
        return str(POCKET)
    if Path(name).is_dir():
        if not (Path(name) / "model_index.json").is_file():
            raise TiltingError(f"{name} is not a diffusers pipeline: it has no model_index.json")
        return name
    if name.count("/") == 1 and not name.startswith((".", "/")) and all(name.split("/")):
        return name
    raise TiltingError(
        f"unknown model {name!r}: known are {', '.join(MODELS)}, a diffusers folder, or a hub id like owner/name"
    )


def load(name: str = "pocket") -> StableDiffusion:
    """Load a model: "pocket", a diffusers folder, or a hub id."""
    from tilting.models.stable_diffusion import load_stable_diffusion

    source = find_model(name)
    return load_stable_diffusion(source, name, *usual(name))
