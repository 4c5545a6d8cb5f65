"""Which models there are loaders for. A family is declared beside its loader, in one file:

    @FAMILIES.declare("stable-diffusion", "Stable Diffusion 1.x and 2.x", ("StableDiffusionPipeline",), steps=50, cfg=7.5)
    class StableDiffusion(Adapter): ...

Another package's is named by an entry point of the group ``tilting.models``. Torch-free: a folder's own json says what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tilting.declare import Registry
from tilting.errors import TiltingError
from tilting.features.hub import online
from tilting.foreign import Malformed, parse_json, read_text

if TYPE_CHECKING:
    import torch

INDEX, CONFIG = "model_index.json", "config.json"
"""Of a pipeline, and of a network alone: their ``_class_name`` says what they are."""


class Loads(Protocol):
    """What declares a family: a class whose `load` gives a model, as `tilting.generation.plan.Model` has it."""

    @classmethod
    def load(cls, source: str, name: str, steps: int, cfg: float, dtype: torch.dtype) -> Any:
        """The model in a folder or behind a hub id.

        Args:
            source: the folder or hub id.
            name: what manifests call it.
            steps, cfg: its own defaults, for unset options.
            dtype: of network and text encoders.
        """
        ...


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: of the family.
        loader: the class that loads one.
        about: for `tilting models`.
        classes: the ``_class_name`` of the pipelines it takes, or of networks that lie alone.
        steps, cfg: the defaults of its models.
        varying: source -> defaults of its own, or None for those of the family.
    """

    name: str
    loader: type[Loads]
    about: str
    classes: tuple[str, ...]
    steps: int
    cfg: float
    varying: Callable[[str], tuple[int, float] | None] = lambda source: None


FAMILIES: Registry[Family] = Registry("model family", "tilting.models", Family)


def read_json(source: str, file: str = INDEX) -> dict[str, Any]:
    """A json file of a pipeline: of its folder, or of a hub id, fetched where it is not cached.

    Raises:
        TiltingError: if there is none, or it cannot be fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / file
        if not path.is_file():
            raise TiltingError(f"{source} is not a diffusers pipeline: it has no {file}")
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(source, file, local_files_only=not online()))
        except LocalEntryNotFoundError as error:
            raise TiltingError(
                f"cannot load the model {source!r}: it is neither a folder nor in the hub's cache, and the hub does not answer"
            ) from error
        except (OSError, ValueError) as error:  # its own errors are of these, a missing file and no network among them
            raise TiltingError(f"cannot load the model {source!r}: {str(error).splitlines()[0]}") from error
    try:
        content = parse_json(read_text(path), file)
    except Malformed:
        content = None
    if not isinstance(content, dict):
        raise TiltingError(f"{source} is not a diffusers pipeline: its {file} cannot be read")
    return content


def family_of(source: str) -> Family:
    """The family of the pipeline, or of a network alone, in a folder or behind a hub id. Raises TiltingError for another."""
    alone = Path(source).is_dir() and not (Path(source) / INDEX).is_file() and (Path(source) / CONFIG).is_file()
    kind = str(read_json(source, CONFIG if alone else INDEX).get("_class_name"))
    known = {name: family for family in FAMILIES.values() for name in family.classes}
    if kind in known:
        return known[kind]
    if alone:
        raise TiltingError(f"{source} is not a diffusers pipeline: it has no {INDEX}")
    raise TiltingError(f"there is no adapter for a {kind}: known are {', '.join(known)}")


def missing_components(source: str) -> list[str]:
    """What a pipeline is without: null in its index, or, of a folder, a text encoder that was not copied."""
    index, folder = read_json(source), Path(source)
    libraries = {key: value[0] for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    if folder.is_dir():
        gone = [key for key in libraries if key.startswith(("text_encoder_3", "tokenizer_3")) and not (folder / key).is_dir()]
        libraries |= dict.fromkeys(gone)
    return [key for key, library in libraries.items() if library is None]


def defaults_of(source: str) -> tuple[int, float]:
    """Steps and guidance scale of a model where they are unset."""
    family = family_of(source)
    return family.varying(source) or (family.steps, family.cfg)
