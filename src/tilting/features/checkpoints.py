"""Where the weights of published scorers are found, and how a file of another format becomes a transformers model.

A weight file is the one the user names, else the one under ``~/.cache/tilting/<reward>/``, else the hub's (its own cache
first, then the network). Only safetensors and what torch reads with ``weights_only`` are opened: a pickle never runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tilting.errors import TiltingError
from tilting.features.hub import online

Model = TypeVar("Model", bound=nn.Module)
Take = Callable[[Tensor], Tensor]
"""The part of a checkpoint's tensor, in the shape a module of ours has it."""


@dataclass(frozen=True)
class Source:
    """Where the weights of one reward come from.

    Attributes:
        reward: its name.
        repo: their name on the hub.
        files: names the weight file may have, the one asked for first; none for a whole transformers folder.
        address: where a person gets them, the hub's page by default.
        part: what of the reward they are, for the sentence.
    """

    reward: str
    repo: str
    files: tuple[str, ...] = ()
    address: str = ""
    part: str = "weights"

    @property
    def folder(self) -> Path:
        """The directory of the user's that is looked at."""
        return Path.home() / ".cache" / "tilting" / self.reward

    def wanted(self, into: Path | None = None) -> str:
        """The sentence for a user who has no weights: what to get, where, and the directory where to put it."""
        what = self.files[0] if self.files else "config.json, model.safetensors and the other small files"
        where = self.address or f"{self.repo} on the Hugging Face hub"
        return (
            f"the {self.part} of {self.reward!r} cannot be found: get {what} from {where} and put it into {into or self.folder}"
        )


def find_file(source: Source, place: str | Path | None = None) -> Path:
    """The weight file of a source.

    Args:
        source: whose; it has at least one file name.
        place: the file, or a folder that holds one of its names; by default the user's cache, then the hub.

    Raises:
        TiltingError: there is none; the sentence names the file, its address and the directory where to put it.
    """
    if place is not None:
        path = Path(place).expanduser()
        if path.is_file():
            return path
        if not path.is_dir():
            raise TiltingError(f"there is no file or folder {str(place)!r} with the weights of {source.reward!r}")
        found = [path / name for name in source.files if (path / name).is_file()]
        if not found:
            raise TiltingError(
                f"the folder {str(place)!r} has no {' or '.join(source.files)}, the weights of {source.reward!r}"
            )
        return found[0]
    for name in source.files:
        if (source.folder / name).is_file():
            return source.folder / name
    from huggingface_hub import hf_hub_download

    with explained(source, source.repo):
        return Path(hf_hub_download(source.repo, source.files[-1], local_files_only=not online()))


def find_folder(source: Source, place: str | Path | None = None, holds: Sequence[str] = ("config.json",),
                beside: Path | None = None) -> str | Path:  # fmt: skip
    """The transformers folder of a source, or its name on the hub.

    Args:
        source: whose.
        place: a folder or a name that the user gave, returned as it is.
        holds: files of which a folder must have one to be taken.
        beside: the folder to look at before the user's cache.
    """
    if place is not None:
        path = Path(place).expanduser()
        return path if path.is_dir() else place
    places = [source.folder] if beside is None else [beside, source.folder]
    return next((at for at in places if any((at / name).is_file() for name in holds)), source.repo)


def here(folder: str | Path) -> tuple[str | Path, bool]:
    """What transformers is to read, and whether it is local: a folder as it is; a name on the hub too, but its folder in
    the hub's cache while the hub is off or does not answer.

    Raises:
        OSError: the hub does not answer and its cache has nothing of that name.
    """
    from huggingface_hub import snapshot_download

    if Path(folder).is_dir() or not online():
        return folder if Path(folder).is_dir() else snapshot_download(str(folder), local_files_only=True), True
    return folder, False


@contextmanager
def explained(source: Source, folder: str | Path, into: Path | None = None) -> Iterator[None]:
    """Whatever fails inside, when ``folder`` is the hub's own name, becomes the sentence of the missing weights.

    Args:
        source: whose.
        folder: what is read inside.
        into: the directory the sentence names, the user's cache by default.
    """
    try:
        yield
    except (OSError, TiltingError) as error:
        if str(folder) != source.repo:
            raise
        raise TiltingError(source.wanted(into)) from error


def pretrained(kind: type[Any], folder: str | Path, name: str, **options: Any) -> Any:
    """`kind.from_pretrained` in float32 and frozen, refusing a folder whose weights are not all there.

    Raises:
        TiltingError: it does not load, or weights of it are missing or of another shape.
    """
    try:
        place, local = here(folder)
        options |= {"local_files_only": local, "dtype": torch.float32, "output_loading_info": True}
        model, told = kind.from_pretrained(place, **options)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TiltingError(f"{str(folder)!r} holds no {name} that loads: {reason[0]}") from error
    missing, other = sorted(told["missing_keys"]), sorted(str(k) for k in told["mismatched_keys"])
    if missing or other:
        raise TiltingError(_wrong(str(folder), name, missing, sorted(told["unexpected_keys"]), other))
    return model.requires_grad_(False).eval()


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by key, on the CPU, out of a ``state_dict`` or ``model`` they may be wrapped in.

    Raises:
        TiltingError: it is cut off, or holds something else than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        what = f"the checkpoint {str(path)!r} of {name!r} does not load ({type(error).__name__})"
        raise TiltingError(f"{what}: it is cut off, or not made of tensors alone") from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, Mapping) and isinstance(state.get(key), Mapping) else state
    if not (isinstance(state, Mapping) and state and all(isinstance(v, Tensor) for v in state.values())):
        raise TiltingError(f"the checkpoint {str(path)!r} of {name!r} holds no state dict of tensors")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def fill(make: Callable[[], Model], state: Mapping[str, Tensor], rule: Callable[[str], tuple[str, Take]], path: Path, name: str,
         ignore: str = "(?!)") -> Model:  # fmt: skip
    """Build a module and give it a checkpoint's weights in float32, frozen and in eval mode.

    Args:
        make: builds it; called without memory for the weights (on torch's meta device).
        state: the checkpoint.
        rule: a name of the module's -> the checkpoint's key and what to take of that tensor.
        path: of the checkpoint, for the refusal.
        name: of the reward, for the refusal.
        ignore: a pattern of keys that the checkpoint has and the score does not use.

    Raises:
        TiltingError: keys are missing, unexpected or of another shape; counted, with the first of each.
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


def layers(state: Mapping[str, Tensor], prefix: str, usual: int) -> int:
    """How many numbered blocks there are under a prefix; the published number when there is none at all."""
    numbers = {int(m[1]) for m in (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in state) if m}
    return 1 + max(numbers) if numbers else usual


def shape_of(state: Mapping[str, Tensor], key: str, *usual: int) -> tuple[int, ...]:
    """The shape of a tensor; the published one when the checkpoint has no such key or one of another rank."""
    return tuple(state[key].shape) if key in state and state[key].ndim == len(usual) else usual


def _wrong(path: str, name: str, missing: list[str], unexpected: list[str], other: list[str]) -> str:
    """The refusal of a checkpoint that is not what it should be."""
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
    parts = [f"{len(keys)} {what} (such as {keys[0]})" for what, keys in found if keys]
    return f"{path!r} is no checkpoint of {name!r}, or a part of one: of its weights {', '.join(parts)}"
