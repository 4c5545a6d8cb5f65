"""A diffusers pipeline from a folder, a hub id or a single file. The only caller of diffusers' loaders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tilting.errors import TiltingError
from tilting.features.hub import online
from tilting.foreign import check_finite
from tilting.lazy import torch
from tilting.models.families import CONFIG, INDEX, missing_components, read_json

OF_NO_USE = ("safety_checker",)
"""Parts that are not loaded wherever a pipeline can be without."""


def load_pipeline(
    source: str, dtype: torch.dtype, unused: tuple[str, ...] = (), kind: str | None = None, parts: dict[str, Any] | None = None
) -> Any:
    """Load a diffusers folder, or a hub id where there is network. Weights are safetensors only.

    Args:
        source: the folder or hub id.
        dtype: of network and text encoders, whatever they were saved in; the autoencoder is float32.
        unused: parts that are not to be loaded.
        kind: the class to load it as, where that is not its own.
        parts: loaded before, such as a ControlNet.

    Raises:
        TiltingError: if it does not load, or the id cannot be fetched.
    """
    import diffusers
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    without: dict[str, Any] = dict.fromkeys((*missing_components(source), *unused))
    without |= {f"requires_{part}": False for part in unused}
    loader = getattr(diffusers, kind) if kind else DiffusionPipeline
    dtypes: Any = {"default": dtype, "vae": torch.float32}
    with loading(source):
        pipe = loader.from_pretrained(
            source,
            use_safetensors=True,
            torch_dtype=dtypes,
            local_files_only=Path(source).exists() or not online(),
            **without,
            **(parts or {}),
        )
    check_fits(pipe, source)
    return placed(pipe, dtype)


def check_fits(pipe: Any, source: str) -> None:
    """Refuse what diffusers loads in silence, and what would draw noise.

    Raises:
        TiltingError: weights of a part that are not finite; a part whose own config says another class than the index; a UNet
            that does not read what the pipeline's text encoders give.
    """
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            check_finite(part.state_dict().items(), f"the {name} of the model {source!r}")
            file = Path(source) / name / CONFIG
            said = read_json(source, f"{name}/{CONFIG}").get("_class_name") if file.is_file() else None
            if said is not None and said != type(part).__name__:
                raise TiltingError(
                    f"the {INDEX} of {source!r} says {name} is a {type(part).__name__}, its own {CONFIG} a {said}"
                )
    config = getattr(getattr(pipe, "unet", None), "config", {})
    if type(pipe).__name__.startswith("StableDiffusion") and not config.get("encoder_hid_dim"):
        encoders = [part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None]
        width, given = config.get("cross_attention_dim"), sum(part.config.hidden_size for part in encoders)
        sized = config.get("addition_embed_type") == "text_time"
        if isinstance(width, int) and (width != given or sized != ("XL" in type(pipe).__name__)):
            reads = f"it reads tokens of {width} numbers{' and sizes' if sized else ''}, and is given {given}"
            raise TiltingError(f"the unet of {source!r} does not fit its {INDEX}, which says {type(pipe).__name__}: {reads}")


def load_part(source: str, kind: str, dtype: torch.dtype) -> Any:
    """A network of its own folder or hub id, of a class of diffusers. Raises TiltingError."""
    import diffusers

    with loading(source):
        return getattr(diffusers, kind).from_pretrained(
            source, use_safetensors=True, torch_dtype=dtype, local_files_only=Path(source).exists() or not online()
        )


def placed(pipe: Any, dtype: torch.dtype) -> Any:
    """A pipeline whose text encoders are in the precision asked for: one that was saved in half stays so otherwise. A tokenizer
    that does not say how many tokens are read of it says what its encoder has places for."""
    for name, part in pipe.components.items():
        most = getattr(getattr(pipe.components.get(f"text_encoder{name[9:]}"), "config", None), "max_position_embeddings", None)
        if name.startswith("tokenizer") and most and getattr(part, "model_max_length", 0) > 10**6:
            part.model_max_length = most
        if name.startswith("text_encoder") and isinstance(part, torch.nn.Module):
            part.to(dtype)
    return pipe


@contextmanager
def loading(source: str) -> Iterator[None]:
    """Quietly, and what fails as one sentence."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # of torch_dtype, which older versions call for and is called dtype in newer
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except TiltingError:
        raise
    except Exception as error:  # of many kinds: a file that was cut off, a config of another size, words that are no tokenizer
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TiltingError(f"cannot load the model {source!r}: {reason[0]}") from error
