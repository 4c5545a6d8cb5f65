"""Loading of frozen networks from transformers folders and from checkpoints with other names.

Only safetensors and what torch reads with ``weights_only`` are opened: nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from tilting.errors import TiltingError
from tilting.features.pixels import Pixels, followed
from tilting.features.sources import here
from tilting.foreign import check_file, check_finite, read_json, read_tensors

Model = TypeVar("Model", bound=nn.Module)
Take = Callable[[Tensor], Tensor]
"""Selects and reshapes the part of a checkpoint's tensor that a module needs."""


class Frozen(nn.Module):
    """A network that is never trained: no gradient for its weights, always in eval mode, moved to the device of its images."""

    def freeze(self) -> None:
        """Call at the end of a subclass's ``__init__``."""
        self.requires_grad_(False).eval()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({sum(one.numel() for one in self.parameters()):,} weights)"

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, also when a trainer switches the modules around it."""
        return super().train(False)

    def follow(self, x: Tensor) -> None:
        """Move to the device of a tensor."""
        if x.device != next(chain(self.buffers(), self.parameters())).device:
            self.to(x.device)


@contextmanager
def refused(says: str, errors: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turn errors of these types inside the block into a TiltingError: ``says``, and the first line of the error."""
    try:
        yield
    except errors as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TiltingError(f"{says}: {reason[0]}") from error


def tokenizer_of(folder: str | Path, name: str) -> Any:
    """The tokenizer in a transformers folder. Raises TiltingError naming both."""
    from transformers import AutoTokenizer

    with refused(f"{str(folder)!r} holds no {name} that loads", (OSError, ValueError)):
        source, local = here(folder)
        # of the model that the user names; without trust_remote_code nothing of it runs
        return AutoTokenizer.from_pretrained(source, local_files_only=local)  # nosec B615


def pixels_in(folder: str | Path) -> Pixels:
    """The preprocessing of a transformers folder. Raises TiltingError: it does not load, or is not supported (`followed`)."""
    from transformers import AutoImageProcessor

    with refused(f"{str(folder)!r} has no image processor that loads"):
        source, local = here(folder)
        # of the model that the user names; without trust_remote_code nothing of it runs
        processor = AutoImageProcessor.from_pretrained(source, local_files_only=local)  # nosec B615
    return followed(processor, str(folder))


def preprocessor_of(folder: str | Path, name: str) -> dict[str, Any]:
    """The preprocessor_config.json of a transformers folder. Raises TiltingError naming both."""
    from transformers.utils.hub import cached_file

    with refused(f"{str(folder)!r} holds no preprocessor_config.json of a {name}", (OSError, ValueError)):
        source, local = here(folder)
        path = cached_file(source, "preprocessor_config.json", local_files_only=local)
    return read_json(Path(str(path)))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers: callers check the loaded weights themselves."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def loaded(kind: type[Any], folder: str | Path, name: str, **options: Any) -> Any:
    """`kind.from_pretrained` of a transformers folder; with a ``state_dict`` and a ``config``, the folder is only named in
    error messages. Raises TiltingError naming folder and network."""
    with refused(f"{str(folder)!r} holds no {name} that loads"), quiet():
        source, local = (None, True) if "state_dict" in options else here(folder)
        return kind.from_pretrained(source, local_files_only=local, **options)


def pretrained(kind: type[Any], folder: str | Path, name: str, **options: Any) -> Any:
    """`loaded`, frozen and in eval mode, in float32 unless ``dtype`` says otherwise; incomplete weights are refused.

    Raises:
        TiltingError: it does not load, or weights of it are missing or of another shape.
    """
    model, told = loaded(kind, folder, name, **({"dtype": torch.float32, "output_loading_info": True} | options))
    missing, other = sorted(told["missing_keys"]), sorted(str(k) for k in told["mismatched_keys"])
    extra = sorted(told["unexpected_keys"])
    if missing or other or (extra and "state_dict" in options):
        raise TiltingError(_wrong(str(folder), name, missing, extra, other))
    return model.requires_grad_(False).eval()


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by key, on the CPU, unwrapped from a ``state_dict`` or ``model`` entry.

    Raises:
        TiltingError: it is truncated, or holds anything but tensors.
    """
    what = f"the checkpoint {str(path)!r} of {name!r}"
    try:
        if path.suffix == ".safetensors":
            state: Any = read_tensors(path, what)
        else:
            state = torch.load(check_file(path, what), map_location="cpu", weights_only=True)
    except TiltingError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise TiltingError(f"{what} does not load ({kind}): it is cut off, or not made of tensors alone") from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, Mapping) and isinstance(state.get(key), Mapping) else state
    if not (isinstance(state, Mapping) and state and all(isinstance(v, Tensor) for v in state.values())):
        raise TiltingError(f"{what} holds no state dict of tensors")
    check_finite(state.items(), what)
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def fill(
    make: Callable[[], Model],
    state: Mapping[str, Tensor],
    rule: Callable[[str], tuple[str, Take]],
    path: Path,
    name: str,
    ignore: str = "(?!)",
) -> Model:
    """Build a module and give it a checkpoint's weights in float32, frozen and in eval mode.

    Args:
        make: builds it; called without memory for the weights (on torch's meta device).
        state: the checkpoint.
        rule: maps a name of the module to the checkpoint's key and the part to take of that tensor.
        path: the checkpoint's path, for error messages.
        name: the reward's name, for error messages.
        ignore: pattern of checkpoint keys that are not needed.

    Raises:
        TiltingError: keys are missing, unexpected or of another shape; with counts and an example of each.
    """
    with torch.device("meta"):
        module = make()
    own = module.state_dict()
    rules = {key: rule(key) for key in own}
    used = {key for key, _ in rules.values()}
    taken: dict[str, Tensor] = {}
    other = set()
    for key, (theirs, take) in rules.items():
        if theirs in state:
            part = take(state[theirs])
            taken[key] = part.detach().float().contiguous()
            if part.shape != own[key].shape:
                other.add(theirs)
    missing = sorted(used - state.keys())
    unexpected = sorted(key for key in state.keys() - used if not re.fullmatch(ignore, key))
    if missing or unexpected or other:
        raise TiltingError(_wrong(str(path), name, missing, unexpected, sorted(other)))
    module.load_state_dict(taken, assign=True)
    for owner in module.modules():
        for key, buffer in owner.named_buffers(recurse=False):
            if buffer.is_meta:  # the one kind no file holds: positions 0, 1, ...
                owner.register_buffer(key, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
    return module.requires_grad_(False).eval()


def layers(state: Mapping[str, Tensor], prefix: str, published: int) -> int:
    """The number of numbered blocks under a prefix; ``published`` if there are none."""
    numbers = {int(m[1]) for m in (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in state) if m}
    return 1 + max(numbers) if numbers else published


def shape_of(state: Mapping[str, Tensor], key: str, *published: int) -> tuple[int, ...]:
    """The shape of a tensor; ``published`` if the key is missing or the tensor has another rank."""
    return tuple(state[key].shape) if key in state and state[key].ndim == len(published) else published


def _wrong(path: str, name: str, missing: list[str], unexpected: list[str], other: list[str]) -> str:
    """The error message for a checkpoint with wrong keys."""
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
    parts = [f"{len(keys)} {what} (such as {keys[0]})" for what, keys in faults if keys]
    return f"{path!r} is no checkpoint of {name!r}, or a part of one: of its weights {', '.join(parts)}"
