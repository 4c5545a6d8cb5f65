"""torch and numpy, imported when they are first used.

What is declared (methods, objectives, rewards) and what runs stand in one file each. Commands read the declarations to help,
to list and to refuse, and must answer before torch, which takes a second, is there. Modules that define networks import torch
itself.
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
    """Ask transformers, diffusers, bitsandbytes and the hub for errors alone and no bars, unless the environment asks for more.

    They read it when they are imported, which is later.
    """
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
