"""A diffusers pipeline from a folder or a hub id, as the adapter of its family. The only caller of diffusers' loader."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tilting.features.hub import online
from tilting.models.adapter import Adapter
from tilting.models.families import family_of, left_out
from tilting.types import TiltingError


def load_pipeline(
    source: str | Path, name: str | None = None, steps: int | None = None, cfg: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Adapter:  # fmt: skip
    """Load a diffusers folder, or a hub id where there is network. Weights are safetensors only.

    Args:
        source: the folder or hub id.
        name: what manifests call it, ``source`` by default.
        steps, cfg: its usual settings, those of its family by default.
        dtype: of network and text encoders; the autoencoder is float32.

    Raises:
        TiltingError: if the folder is not a pipeline, there is no adapter for it, or the id cannot be fetched.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.utils import logging

    family = family_of(str(source))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    without: dict[str, Any] = dict.fromkeys(left_out(str(source)))
    if family.adapter == "StableDiffusion":
        without |= {"safety_checker": None, "requires_safety_checker": False}
    dtypes: Any = {"default": dtype, "vae": torch.float32}
    local = Path(source).exists() or not online()
    try:
        with warnings.catch_warnings():
            # of torch_dtype, which older versions call for and is called dtype in newer
            warnings.simplefilter("ignore", FutureWarning)
            pipe = DiffusionPipeline.from_pretrained(
                str(source), use_safetensors=True, torch_dtype=dtypes, local_files_only=local, **without
            )
    except Exception as error:  # of many kinds: a file that was cut off, a config of another size, words that are no tokenizer
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TiltingError(f"cannot load the model {str(source)!r}: {reason[0]}") from error
    kind = getattr(import_module(f"tilting.models.{family.module}"), family.adapter)
    model = kind(pipe, name or str(source), family.steps if steps is None else steps, family.cfg if cfg is None else cfg)
    for end in kind.encoders:
        encoder = getattr(model, f"text_encoder{end}")
        if encoder is not None:
            encoder.to(dtype)  # one that was saved in half precision stays so, whatever is asked for
    return model
