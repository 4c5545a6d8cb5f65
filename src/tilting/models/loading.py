"""Loads a diffusers pipeline from a folder, a hub id or a single file. The only caller of diffusers' loaders."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tilting.errors import TiltingError
from tilting.features.hub import online
from tilting.foreign import check_finite
from tilting.lazy import torch
from tilting.models.families import CONFIG, INDEX, config_of, in_one_file, kind_of, missing_components, read_json
from tilting.models.pipeline_class import steerable_class

OF_NO_USE = ("safety_checker",)
"""Parts that are not loaded wherever a pipeline can be without."""
PLAIN = re.compile(r"StableDiffusion(XL)?(Img2Img)?Pipeline")
UNTOLD = ("class_embed_type", "num_class_embeds", "class_embeddings_concat", "dual_cross_attention")
"""Fields of a UNet that reads what text-to-image pipelines of its kind do not give: classes, a second text."""
WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(?P<first>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<last>\w+))?\.safetensors")
"""A file of a part's weights: its variant stands before the number of a shard, or in older folders after it."""


def load_pipeline(
    source: str, dtype: torch.dtype, unused: tuple[str, ...] = (), kind: str | None = None, parts: dict[str, Any] | None = None
) -> Any:
    """Load a diffusers folder, or a hub id where there is network. Weights are safetensors only.

    Args:
        source: the folder, hub id, or file with its configuration (`tilting.models.families.in_one_file`).
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
    if (alone := in_one_file(source)) is not None:
        with loading(source):
            pipe = open_file(*alone, kind or kind_of(source), {**without, **(parts or {})})
        check_fits(pipe, source)
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and name != "vae":
                part.to(dtype)
        return placed(pipe, dtype)
    without |= {f"requires_{part}": False for part in unused}
    loader = getattr(diffusers, kind) if kind else DiffusionPipeline
    dtypes: Any = {"default": dtype, "vae": torch.float32}
    with loading(source):
        pipe = loader.from_pretrained(
            source,
            use_safetensors=True,
            torch_dtype=dtypes,
            local_files_only=Path(source).exists() or not online(),
            variant=variant_of(Path(source)),
            **without,
            **(parts or {}),
        )
    check_fits(pipe, source)
    return placed(pipe, dtype)


def open_file(file: str, config: str, kind: str, parts: dict[str, Any]) -> Any:
    """The pipeline in a file, in float32.

    Args:
        file: the checkpoint.
        config: folder or hub id of its parts' configurations.
        kind: its class.
        parts: loaded before, or None for what is left out.

    Raises:
        TiltingError: for a class that is in no single file, or a part that the file has not, or not whole.
    """
    import diffusers

    steerable_class(kind)
    loader = getattr(diffusers, kind)
    if not hasattr(loader, "from_single_file"):
        raise TiltingError(f"a {kind} is not read from one file: diffusers has no conversion of it")
    here = Path(config).is_dir()
    try:
        pipe = loader.from_single_file(file, config=config, torch_dtype=torch.float32, local_files_only=here, **parts)
    except NotImplementedError as error:  # a network that was not filled cannot be moved
        raise TiltingError(f"{file!r} has not all the tensors of the parts that {config!r} describes") from error
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and any(p.is_meta for p in (*part.parameters(), *part.buffers())):
            lost = next(key for key, p in (*part.named_parameters(), *part.named_buffers()) if p.is_meta)
            raise TiltingError(f"{file!r} has not the whole {name}: {lost} is missing")
    return pipe


def variant_of(folder: Path) -> str | None:
    """The variant, such as "fp16", of a folder in which a part's weights lie as that alone; None of others.

    Raises:
        TiltingError: where parts lie in different variants alone.
    """
    found: set[str] = set()
    for part in sorted(folder.iterdir()) if folder.is_dir() else []:
        names = [match for file in part.glob("*.safetensors") if (match := WEIGHTS.fullmatch(file.name))]
        kinds = {match["first"] or match["last"] for match in names}
        if names and None not in kinds:
            if len(kinds) > 1:
                raise TiltingError(f"{str(part)!r} holds several variants of its weights, {', '.join(sorted(kinds))}: keep one")
            found |= kinds
    if len(found) > 1:
        raise TiltingError(f"the parts of {str(folder)!r} are of different variants: {', '.join(sorted(found))}")
    return found.pop() if found else None


def check_fits(pipe: Any, source: str) -> None:
    """Refuse what diffusers loads in silence, and what would draw noise.

    Raises:
        TiltingError: weights of a part that are not finite; a part whose own config says another class than the index; a UNet
            that does not read what the pipeline's text encoders give, reads more, or has other channels than the vae.
    """
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            check_finite(part.state_dict().items(), f"the {name} of the model {source!r}")
            file = Path(config_of(source)) / name / CONFIG
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
    if PLAIN.fullmatch(type(pipe).__name__):
        latent = getattr(pipe.vae.config, "latent_channels", None)
        odd = [name for name in UNTOLD if config.get(name)]
        odd += [name for name in ("in_channels", "out_channels") if config.get(name) != latent]
        if odd:
            why = "which this pipeline does not tell it" if odd[0] in UNTOLD else f"not the {latent} channels of its vae"
            raise TiltingError(f"the unet of {source!r} has {odd[0]} = {config.get(odd[0])!r}, {why}")


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
