"""The libraries' own bars and notices off, for a process that is ours. Free of torch: they read it when they are imported."""

from __future__ import annotations

import os
import warnings


def hush() -> None:
    """Ask transformers, diffusers and the hub for errors alone, unless the environment says otherwise."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
