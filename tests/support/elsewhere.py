"""A device that is not the CPU, on a machine that has none: its tensors hold real numbers in main memory and refuse what CUDA
refuses.

Kernels that are given tensors of both devices raise as a GPU's do: but for a lone number of the CPU, an index of the CPU into
what is there, and a copy. So do a generator of another device, `numpy`, and, where it is said, float64 (MPS has none). Random
numbers drawn there, which a CPU would not draw alike, raise too. What brings numbers to the host is counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = "far"


class Backend:
    """What torch asks of a device's module."""

    _initialized = False

    def __getattr__(self, name: str) -> Any:
        answers = {
            "is_available": True,
            "is_initialized": True,
            "device_count": 1,
            "current_device": 0,
            "_is_in_bad_fork": False,
        }
        answers |= {"get_amp_supported_dtype": [torch.float16, torch.bfloat16], "manual_seed_all": None, "synchronize": None}
        if name not in answers:
            raise AttributeError(name)
        return lambda *_: answers[name]


torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter that moves stays itself, as CUDA's does
THERE = torch.device(NAME, 0)
COPIES = {"copy_", "_to_copy", "set_data", "_has_compatible_shallow_copy_type", "is_same_size"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
STRICT = {"cat", "stack", "mm", "bmm", "addmm", "baddbmm", "convolution", "embedding", "gather", "scatter", "index_select"}
RANDOM = {"normal_", "uniform_", "bernoulli_", "random_", "exponential_", "randn", "rand", "randint", "randperm", "multinomial"}
HOST = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal"}
"""What the host waits for."""


class Far(torch.Tensor):
    """A tensor that is there."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Far:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=THERE
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.inner!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            "can't convert far:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **how: Any) -> Any:
        return torch.tensor(data, dtype=how.get("dtype", self.dtype), device="cpu").to(self.device)

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(as_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(as_tensors(index), value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def as_tensors(index: Any) -> Any:
    """Lists made tensors of the host, which torch itself makes by a way that no mode sees."""
    if isinstance(index, tuple):
        return tuple(map(as_tensors, index))
    return torch.tensor(index, device="cpu") if isinstance(index, list) else index


DOWN: Counter[str] = Counter()
"""What came to the host, by the name of the kernel."""
WITHOUT: set[torch.dtype] = set()
"""What the device has not."""


def there(value: Any) -> bool:
    return value is not None and torch.device(value).type == NAME


def inside(value: Any) -> Any:
    return value.inner if isinstance(value, Far) else value


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One kernel, where its tensors are."""
    name, given = (
        func._schema.name.removeprefix("aten::"),
        [t for t in trees.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)],
    )
    far, near = [t for t in given if isinstance(t, Far)], [t for t in given if not isinstance(t, Far)]
    asked = kwargs.get("device")
    on = there(asked) if asked is not None else bool(far)
    if far and near and name not in COPIES:
        met = [t for t in near if t.ndim or name in STRICT]
        if name in INDEXED:
            met = [] if isinstance(args[0], Far) and (len(args) < 3 or isinstance(args[2], Far) or not args[2].ndim) else near
        if met:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} was given far:0 and cpu {met[0].shape}"
            )
    if name.removesuffix("_like") in RANDOM and on:
        raise RuntimeError(f"{func}: random numbers of {kwargs.get('generator') or 'no generator'} drawn on the device")
    if (
        (name in HOST and far)
        or (far and asked is not None and not on)
        or (name == "copy_" and far and not isinstance(args[0], Far))
    ):
        DOWN[name] += 1
    if asked is not None:
        kwargs = kwargs | {"device": "cpu"}
    out = func(*trees.tree_map(inside, args), **trees.tree_map(inside, kwargs))
    made = [t for t in trees.tree_leaves(out) if isinstance(t, torch.Tensor)]
    if on and WITHOUT.intersection(t.dtype for t in made):
        raise TypeError(f"{func}: the device has no {made[0].dtype}")
    if name == "copy_":
        return args[0]
    if not on:
        return out
    out = trees.tree_map(lambda t: Far(t) if isinstance(t, torch.Tensor) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


class Told(TorchFunctionMode):
    """Numbers of the host that are to be a tensor there, which torch itself makes by a way that no dispatch sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and there(kwargs.get("device")):
            return func(*args, **kwargs | {"device": "cpu"}).to(THERE)
        return func(*args, **kwargs)


class Elsewhere(TorchDispatchMode):
    """Within it the device is there."""

    def __enter__(self) -> Any:
        DOWN.clear()
        self.alone = torch.autograd.set_multithreading_enabled(False)
        self.alone.__enter__()
        self.told = Told()
        self.told.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.told.__exit__(*error)
        self.alone.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})
