"""Class, defaults and missing parts of the model in a folder, from its JSON files. Torch-free.

A pipeline of diffusers needs no loader of its own. A model that is none is declared beside its loader, in one file,

    @FAMILIES.declare("toy", "a plain PyTorch toy", ("ToyNet",), steps=6, cfg=1.5)
    class Toy: ...

and named by an entry point of the group ``tilting.models``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tilting.declare import Registry
from tilting.errors import TiltingError, nearest
from tilting.features.hub import online
from tilting.foreign import Malformed, parse_json, read_text
from tilting.models.pipeline_class import steerable_class

if TYPE_CHECKING:
    import torch

INDEX, CONFIG = "model_index.json", "config.json"
"""Config files of a pipeline, and of a single network; their ``_class_name`` says what they are."""
NEEDED = ("vae", "unet", "transformer", "scheduler", "text_encoder", "tokenizer")
"""What a pipeline's parts begin with that drawing needs where its index names them; others may be missing in a folder."""


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


ALONE = re.compile(r"(.+\.safetensors)(?:=(.+))?")
"""A checkpoint in one file, and the folder or hub id of its configuration."""


def in_one_file(source: str) -> tuple[str, str] | None:
    """(the file, the folder or hub id of its configuration) of a checkpoint in one file; None of another source."""
    found = None if Path(source).is_dir() else ALONE.fullmatch(source)
    return (found[1], found[2] or "") if found else None


def config_of(source: str) -> str:
    """The folder or hub id that holds the configuration of a model."""
    alone = in_one_file(source)
    return alone[1] if alone else source


def weights_of(source: str) -> Path:
    """The folder or file that holds the weights of a model."""
    alone = in_one_file(source)
    return Path(alone[0] if alone else source)


FAMILIES: Registry[Family] = Registry("model family", "tilting.models", Family)


def read_json(source: str, file: str = INDEX) -> dict[str, Any]:
    """A json file of a pipeline: of its folder, or of a hub id, fetched where it is not cached.

    Raises:
        TiltingError: if there is none, or it cannot be fetched.
    """
    source = config_of(source)
    folder = Path(source)
    if folder.is_dir():
        path = folder / file
        if not path.is_file():
            raise TiltingError(f"{source} is not a diffusers pipeline: it has no {file}")
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            # the newest of the model that the user names; json alone
            path = Path(hf_hub_download(source, file, local_files_only=not online()))  # nosec B615
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


def without_index(source: str) -> bool:
    """Whether it is a folder that is no pipeline: of a network alone, or of something else."""
    return Path(source).is_dir() and not (Path(source) / INDEX).is_file()


def family_of(source: str) -> Family:
    """The family of the pipeline, or of a network alone, in a folder or behind a hub id. Raises TiltingError for another."""
    kind = kind_of(source)
    known = {name: family for family in FAMILIES.values() for name in family.classes}
    if kind in known:
        return known[kind]
    if without_index(source):
        raise TiltingError(f"{source} is not a diffusers pipeline: it has no {INDEX}")
    raise TiltingError(f"there is no loader for a {kind}{nearest(kind, known)}")


def kind_of(source: str) -> str:
    """The class of a pipeline, or of a network alone."""
    source = config_of(source)
    alone = without_index(source) and (Path(source) / CONFIG).is_file()
    return str(read_json(source, CONFIG if alone else INDEX).get("_class_name"))


def has_loader(kind: str) -> bool:
    """Whether a family takes this class."""
    return any(kind in family.classes for family in FAMILIES.values())


def missing_components(source: str) -> list[str]:
    """What a pipeline is without: null in its index, or, of a folder, what was not copied and drawing has no use for.

    Raises:
        TiltingError: for a folder without a part that is needed.
    """
    index, folder = read_json(source), Path(config_of(source))
    libraries = {key: value[0] for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    if folder.is_dir():
        gone = [key for key, library in libraries.items() if library is not None and not (folder / key).is_dir()]
        for key in gone:
            if key.startswith(NEEDED) and not key.endswith("_3"):
                raise TiltingError(f"{source} is not a whole pipeline: it has no {key}")
        libraries |= dict.fromkeys(gone)
    return [key for key, library in libraries.items() if library is None]


def defaults_of(source: str) -> tuple[int, float]:
    """Steps and guidance scale of a model where they are unset."""
    kind = kind_of(source)
    if not has_loader(kind):
        return usual(source, kind)
    family = family_of(source)
    return few_steps(source) or family.varying(source) or (family.steps, family.cfg)


FEW = {
    r"turbo|lightning|hyper(sd(xl)?)?|dmd2?|distill(ed)?": (4, 1.0),
    r"schnell": (4, 1.0),
    r"lcm|tcd": (4, 1.0),
    r"z-image-turbo": (8, 1.0),
}
"""Words in the names of few-step models -> steps and scale; of several the last."""
DISTILLED = (4, 1.0)
"""Steps and scale of a pipeline that says itself that it was distilled."""


def few_steps(source: str) -> tuple[int, float] | None:
    """The defaults of a model that was distilled to few steps, by its name or its scheduler's; None of another."""
    held = None if without_index(source) else read_json(source).get("scheduler")
    return few_of(weights_of(source).name, str(held[1]) if isinstance(held, list) and len(held) == 2 else "")


def few_of(name: str, scheduler: str) -> tuple[int, float] | None:
    """Steps and scale of a model by what it and its scheduler are called, if that says few steps."""
    apart = re.sub(r"(?<=[a-z])(?<![Hh]yper)(?=[A-Z])", " ", name)  # MyModelTurbo; HyperRealism is one word
    said = f"{apart} {scheduler.removesuffix('Scheduler')}".lower()
    found = [value for words, value in FEW.items() if re.search(rf"(?<![a-z])({words})(?![a-z])", said)]
    return found[-1] if found else None


def few_of_built(pipe: Any) -> tuple[int, float] | None:
    """`few_of` a pipeline that someone has built."""
    if getattr(pipe.config, "is_distilled", False):
        return DISTILLED
    return few_of(Path(str(getattr(pipe, "name_or_path", "") or "")).name, type(pipe.scheduler).__name__)


def usual(source: str, kind: str) -> tuple[int, float]:
    """Steps and scale of a pipeline: of its call's own signature, but for models of few steps.

    Raises:
        TiltingError: for a pipeline that cannot be steered.
    """
    takes, index = steerable_class(kind).parameters, read_json(source)
    if index.get("is_distilled") or (
        kind == "FluxPipeline" and not read_json(source, f"transformer/{CONFIG}").get("guidance_embeds", False)
    ):  # which is told no scale: schnell
        return DISTILLED
    steps, true = takes.get("num_inference_steps"), takes.get("true_cfg_scale")
    scale = true if isinstance(true, int | float) and true > 1 else takes.get("guidance_scale")
    own = (steps if isinstance(steps, int) else 50, float(scale) if isinstance(scale, int | float) and scale > 0 else 1.0)
    return few_steps(source) or own
