"""torch and numpy, imported when they are first used.

What is declared (methods, objectives, rewards) and what runs stand in one file each. Commands read the declarations to help,
to list and to refuse, and must answer before torch, which takes a second, is there. Modules that define networks import torch
itself.
"""

from __future__ import annotations

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
