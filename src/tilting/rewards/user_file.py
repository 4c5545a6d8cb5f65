"""`file.py:function`: a reward of the user's own."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tilting.errors import RewardError, TiltingError, nearest, outlived
from tilting.lazy import torch
from tilting.rewards.check import Scorer, check_values

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.types import Time


@dataclass(frozen=True)
class UserReward(Scorer):
    """A user's function as a reward: black-box unless ``function.differentiable`` is True. Of a film it is given the frames, or
    all of it, (b, frames, 3, h, w), if ``function.films`` is True. If ``function.latents`` is True it sees no picture but
    latents as they are, (latents (b, ...), time, prompts) -> (b,): time.alpha and time.sigma say how noisy, time.t what the
    network is told, and nothing is decoded to select by it. `tilting generate` alone asks such a one.

    Attributes:
        function: (images (b, 3, h, w) float in [0, 1], prompts) -> (b,), a tensor or what `torch.as_tensor` reads; or with a
            third parameter ``metadata``, which is given a mapping for each prompt, empty where nothing is known.
        metadata: of prompts.
    """

    function: Callable[..., object]
    name: str
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def asks(self) -> bool:
        """Whether the function takes metadata."""
        try:
            return "metadata" in signature(self.function).parameters
        except BaseException as error:  # a builtin that does not say, or a thing of the user's that does not like to be asked
            outlived(error)
            return False

    def _ask(self, images: Tensor, prompts: list[str], *time: Time) -> object:
        """The function's answer; it gets copies."""
        more = {"metadata": [dict(self.metadata.get(prompt, {})) for prompt in prompts]} if self.asks else {}
        return self.function(images.clone(), *time, list(prompts), **more)

    @property
    def differentiable(self) -> bool:
        """Whether the function says so itself."""
        return _of(self.function, "differentiable", f"the reward {self.name!r}") is True

    @property
    def films(self) -> bool:
        """Whether the function takes films whole."""
        return _of(self.function, "films", f"the reward {self.name!r}") is True

    @property
    def latents(self) -> bool:
        """Whether the function scores latents."""
        return _of(self.function, "latents", f"the reward {self.name!r}") is True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        if self.latents:
            raise TiltingError(f"reward {self.name!r} scores latents, and here are pictures: it is for `tilting generate`")
        return super().__call__(images, prompts)

    def of_latents(self, latents: Tensor, time: Time, prompts: list[str]) -> Tensor:
        """(b,) of latents (b, ...) at their time. Raises RewardError."""
        return self.values(latents, prompts, time)

    def values(self, images: Tensor, prompts: list[str], *time: Time) -> Tensor:
        """(b,) finite floats on the device of the images; the function gets copies, without gradients if it is black-box.

        Raises:
            RewardError: the function raised (the row is then the first image it raises on alone, when there is one),
                or its answer has the wrong shape or is not finite.
        """
        if not self.differentiable:
            images = images.detach()
        with contextlib.nullcontext() if self.differentiable else torch.no_grad():
            try:
                values = self._ask(images, prompts, *time)
            except BaseException as error:
                kind, _, said = outlived(error).partition(":")
                row = self._culprit(images, prompts, *time)
                where = "" if row is None else f" on image {row} of {len(images)}"
                raise RewardError(f"reward {self.name!r} raised {kind}{where}:{said}{_line(error)}", row) from error
            if not isinstance(values, torch.Tensor):
                try:
                    values = torch.as_tensor(values, dtype=torch.float32, device="cpu")
                except BaseException as error:
                    outlived(error)
                    kind = type(values).__name__
                    message = f"reward {self.name!r} must return a tensor of shape ({len(images)},), not {kind}"
                    raise RewardError(message) from error
            if not values.is_floating_point() and not values.is_complex():
                values = values.float()
            return check_values(self.name, values.to(images.device), len(images))

    def _culprit(self, images: Tensor, prompts: list[str], *time: Time) -> int | None:
        """The first image the function raises on when asked about it alone."""
        with torch.no_grad():
            for row in range(len(images)):
                try:
                    self._ask(images[row : row + 1].detach(), [prompts[row]], *time)
                except BaseException as error:
                    outlived(error)
                    return row
        return None


def _of(thing: object, name: str, what: str) -> Any:
    """An attribute of a user's thing, None where it has none. Raises TiltingError: looking for it raises something else."""
    try:
        return getattr(thing, name, None)
    except BaseException as error:
        raise TiltingError(f"{what} raised {outlived(error)}, asked for {name!r}") from error


def _line(error: BaseException) -> str:
    """Where it was raised, of the frames below ours: " (mine.py, line 3)"."""
    frames = traceback.extract_tb(error.__traceback__)[2:]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """The folder first on the import path, so that the user's file finds its neighbours."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


Ran = dict[Path, ModuleType]
"""Files that have run, and what they left."""


def _run(path: Path, file: str) -> ModuleType:
    """The module that a file leaves."""
    module_name = f"tilting_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    how = importlib.util.spec_from_file_location(module_name, path)
    if how is None or how.loader is None:
        raise TiltingError(f"{file!r} is not a Python file")
    module = importlib.util.module_from_spec(how)
    sys.modules[module_name] = module
    try:
        with _beside(path.parent):
            how.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(module_name, None)
        raise TiltingError(f"{file!r} does not run: {outlived(error)}") from error
    return module


def user(spec: str, ran: Ran | None = None) -> UserReward:
    """Load ``file.py:function``; the file runs now, as Python, and nothing else of it is looked at.

    Args:
        spec: the file and the function.
        ran: files that have run for the same request, and need not run again for another of their functions; added to.

    Raises:
        TiltingError: no such file or function, or the file does not run.
    """
    file, _, function = spec.rpartition(":")
    path = Path(os.path.realpath(file))  # which a circle of links does not stop
    if not path.is_file():
        raise TiltingError(f"there is no file {file!r} for the reward {spec!r}")
    ran = {} if ran is None else ran
    module = ran[path] = ran[path] if path in ran else _run(path, file)
    call = _of(module, function, repr(file))
    if call is None:
        own = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise TiltingError(f"{file!r} has no function {function!r}{nearest(function, own) if own else ''}")
    if not callable(call):
        raise TiltingError(f"{function!r} in {file!r} is not a function")
    reward = UserReward(call, spec)
    _ = reward.differentiable  # which may raise, and does so before a model is read
    return reward
