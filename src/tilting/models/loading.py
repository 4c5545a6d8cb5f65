"""A diffusers pipeline from a folder or a hub id. The only caller of diffusers' loader."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from tilting.errors import TiltingError
from tilting.features.hub import online
from tilting.lazy import torch
from tilting.models.families import missing_components


def load_pipeline(source: str, dtype: torch.dtype, unused: tuple[str, ...] = ()) -> Any:
    """Load a diffusers folder, or a hub id where there is network. Weights are safetensors only.

    Args:
        source: the folder or hub id.
        dtype: of network and text encoders; the autoencoder is float32.
        unused: parts that are not to be loaded.

    Raises:
        TiltingError: if it does not load, or the id cannot be fetched.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    without: dict[str, Any] = dict.fromkeys((*missing_components(source), *unused))
    without |= {f"requires_{part}": False for part in unused}
    dtypes: Any = {"default": dtype, "vae": torch.float32}
    local = Path(source).exists() or not online()
    try:
        with warnings.catch_warnings():
            # of torch_dtype, which older versions call for and is called dtype in newer
            warnings.simplefilter("ignore", FutureWarning)
            return DiffusionPipeline.from_pretrained(
                source, use_safetensors=True, torch_dtype=dtypes, local_files_only=local, **without
            )
    except Exception as error:  # of many kinds: a file that was cut off, a config of another size, words that are no tokenizer
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TiltingError(f"cannot load the model {source!r}: {reason[0]}") from error
