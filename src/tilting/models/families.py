"""Which pipelines there are adapters for, and how each is usually run. Torch-free: a folder's own json says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tilting.errors import TiltingError
from tilting.features.hub import online

INDEX = "model_index.json"


class Family(NamedTuple):
    """A family of models.

    Attributes:
        module, adapter: where its class stands.
        steps, cfg: its usual settings; for a model distilled to few steps, see `usual_of`.
        about: for `tilting models`.
    """

    module: str
    adapter: str
    steps: int
    cfg: float
    about: str


FAMILIES = {
    "StableDiffusionPipeline": Family("stable_diffusion", "StableDiffusion", 50, 7.5, "Stable Diffusion 1.x and 2.x"),
    "StableDiffusionXLPipeline": Family("stable_diffusion_xl", "StableDiffusionXL", 50, 5.0, "Stable Diffusion XL"),
    "StableDiffusion3Pipeline": Family("stable_diffusion_3", "StableDiffusion3", 28, 7.0, "Stable Diffusion 3 and 3.5"),
    "FluxPipeline": Family("flux", "Flux", 28, 3.5, "FLUX.1, dev and schnell"),
    "PixArtSigmaPipeline": Family("pixart", "PixArtSigma", 20, 4.5, "PixArt-Sigma"),
}
"""By the ``_class_name`` of a pipeline's model_index.json."""


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
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise TiltingError(f"{source} is not a diffusers pipeline: its {file} cannot be read")
    return found


def family_of(source: str) -> Family:
    """The family of the pipeline in a folder or behind a hub id. Raises TiltingError for one that there is no adapter for."""
    kind = str(read_json(source).get("_class_name"))
    if kind not in FAMILIES:
        raise TiltingError(f"there is no adapter for a {kind}: known are {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def left_out(source: str) -> list[str]:
    """The parts that a pipeline is without: null in its index, or, of a folder, a text encoder that was not copied."""
    index, folder = read_json(source), Path(source)
    parts = {key: value[0] for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    if folder.is_dir():
        gone = [key for key in parts if key.startswith(("text_encoder_3", "tokenizer_3")) and not (folder / key).is_dir()]
        parts |= dict.fromkeys(gone)
    return [key for key, library in parts.items() if library is None]


def usual_of(source: str) -> tuple[int, float]:
    """Steps and guidance scale of a pipeline where they are unset: its family's; 4 and none for a FLUX without a guidance
    input, which is distilled to few steps."""
    family = family_of(source)
    if family.adapter == "Flux" and not read_json(source, "transformer/config.json").get("guidance_embeds", False):
        return 4, 1.0
    return family.steps, family.cfg
