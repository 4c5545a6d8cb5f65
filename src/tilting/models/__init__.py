"""Models: what draws. `load` gives one by name, folder or hub id; importing this room imports neither torch nor diffusers."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from tilting.errors import TiltingError
from tilting.models.families import INDEX, usual_of
from tilting.models.words import POCKET

if TYPE_CHECKING:
    import torch

    from tilting.models.adapter import Adapter

MODELS = {"pocket": "a small Stable Diffusion of 64x64 drawings, in the package: 444 concepts, 3 styles, 12 backgrounds"}

USUAL = {"pocket": (50, 4.0)}
"""Steps and guidance scale of a model where they are unset."""


def usual(name: str) -> tuple[int, float]:
    """The steps and guidance scale that a model is usually run with: its own, or its family's."""
    return USUAL[name] if name in USUAL else usual_of(find_model(name))


def find_model(name: str) -> str:
    """The folder or hub id behind a model's name, checked before anything is loaded.

    Raises:
        TiltingError: for a name that is neither built in, nor a folder, nor of the form owner/name.
    """
    if not isinstance(name, str):
        raise TiltingError(
            f"a model is a name, a folder or a hub id, not a {type(name).__name__}: save a pipeline by save_pretrained first"
        )
    if name == "pocket":
        return str(POCKET)
    if Path(name).is_dir():
        if not (Path(name) / INDEX).is_file():
            raise TiltingError(f"{name} is not a diffusers pipeline: it has no {INDEX}")
        return name
    if name.count("/") == 1 and not name.startswith((".", "/")) and all(name.split("/")):
        return name
    near = f"; did you mean {', '.join(map(repr, found))}?" if (found := get_close_matches(name, MODELS, n=1)) else ""
    raise TiltingError(
        f"unknown model {name!r}: known are {', '.join(MODELS)}, a diffusers folder, or a hub id like owner/name{near}"
    )


def load(
    name: str | Path = "pocket", device: str | torch.device = "cpu", precision: str | torch.dtype = "fp32",
    checkpointing: bool = False,
) -> Adapter:  # fmt: skip
    """Load a model: "pocket", a diffusers folder, or a hub id.

    Args:
        name: of the model.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto": CUDA where there is one, else MPS, else the CPU.
        precision: of network and text encoders: "fp32", "fp16" or "bf16", or its dtype; all else stays float32.
        checkpointing: recompute activations on the way back, so that gradients through a big network take less memory.

    Raises:
        TiltingError: for what is not a pipeline, or one that there is no adapter for, or that cannot be fetched; for a device
            that is not here.
    """
    from tilting.models.loading import load_pipeline
    from tilting.models.placement import ELSEWHERE, device_of, dtype_of

    name = str(name) if isinstance(name, Path) else name
    wanted = precision if isinstance(precision, str) else ELSEWHERE.get(str(precision).removeprefix("torch."), str(precision))
    source, place, dtype = find_model(name), device_of(str(device)), dtype_of(wanted)
    model = load_pipeline(source, name, *usual(name), dtype=dtype).to(place)
    if checkpointing:
        model.checkpoint()
    return model
