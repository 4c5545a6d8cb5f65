"""torch and numpy, imported on first use.

A method, objective or reward is declared in the file that implements it. Commands read the declarations for help, lists and
checks, and must answer before torch is imported, which takes a second. Modules that define networks import torch directly.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch as torch
    import torch.utils.checkpoint
else:

    class _Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            module = import_module(self.__name__)
            self.__dict__.update({key: value for key, value in vars(module).items() if not key.startswith("__")})
            return getattr(module, name)

    np, torch = _Lazy("numpy"), _Lazy("torch")


def hush() -> None:
    """Limit transformers, diffusers, bitsandbytes and the hub to errors without progress bars, unless the environment says
    otherwise. They read these variables when they are imported, which is later.
    """
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
