"""`file.py:function`: a user's own reward."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.errors import RewardError, TiltingError, outlived
from tilting.lazy import torch
from tilting.own import Ran, asked_of, function_of
from tilting.rewards.check import Scorer, check_values

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.types import Time

TRIED, PROMPT = 64, "a fox"
"""Pixels of the picture that a function is tried on, and its prompt."""


@dataclass(frozen=True)
class UserReward(Scorer):
    """A user's function as a reward. Where a gradient is needed and ``function.differentiable`` does not say whether there is
    one, it is tried once on a small picture; False is a black box. Of a video it is given the frames, or all of it,
    (b, frames, 3, h, w), if ``function.videos`` is True. If ``function.latents`` is True it sees no picture but latents as they
    are, (latents (b, ...), time, prompts) -> (b,): time.alpha and time.sigma say how noisy, time.t what the network is told. To
    select by it nothing is decoded; `tilting generate` alone asks such a one.

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
    def says(self) -> bool | None:
        """Whether the function is differentiable, as it says itself; None where it does not."""
        said = asked_of(self.function, "differentiable", f"the reward {self.name!r}")
        return said is True if said is not None else None

    @property
    def differentiable(self) -> bool:
        """As the function says, or as is found by trying it once."""
        said = self.says
        return not self.blind if said is None else said

    @cached_property
    def blind(self) -> str:
        """Why no gradient arrives at a small picture; "" where one does."""
        if self.latents:
            return "it scores latents"
        wedge = torch.linspace(0.1, 0.9, TRIED)
        plane = torch.stack(
            [wedge.expand(TRIED, TRIED), wedge[:, None].expand(TRIED, TRIED), wedge.flip(0).expand(TRIED, TRIED)]
        )
        images = (plane.expand(1, 2, *plane.shape) if self.videos else plane[None]).clone().requires_grad_(True)
        try:
            with torch.enable_grad():
                values = self._ask(images, [PROMPT])
                if not isinstance(values, torch.Tensor) or not values.requires_grad:
                    return "its value does not come from the pictures by torch alone"
                slope = torch.autograd.grad(values.sum(), images, allow_unused=True)[0]
        except BaseException as error:
            return f"it raised {outlived(error)}"
        return "" if slope is not None and slope.isfinite().all() and slope.any() else "its gradient is 0 or not finite"

    @property
    def videos(self) -> bool:
        """Whether the function takes whole videos; ``films`` is a former name."""
        return any(asked_of(self.function, name, f"the reward {self.name!r}") is True for name in ("videos", "films"))

    @property
    def latents(self) -> bool:
        """Whether the function scores latents."""
        return asked_of(self.function, "latents", f"the reward {self.name!r}") is True

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
        connected = self.says or (
            self.says is None and self.__dict__.get("blind") == ""
        )  # where nobody asked, nothing is tried
        if not connected:
            images = images.detach()
        with contextlib.nullcontext() if connected else torch.no_grad():
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


def _line(error: BaseException) -> str:
    """Where it was raised, of the frames below ours: " (mine.py, line 3)"."""
    frames = traceback.extract_tb(error.__traceback__)[2:]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def why_blind(reward: object) -> str:
    """Why a reward was found to be a black box; "" for one that says so, or is none of a user's."""
    return reward.blind if isinstance(reward, UserReward) and reward.says is None else ""


def user(spec: str, ran: Ran | None = None) -> UserReward:
    """Load ``file.py:function`` as a reward; see `tilting.own.function_of`."""
    reward = UserReward(function_of(spec, "reward", ran), spec)
    _ = reward.says  # which may raise, and does so before a model is read
    return reward
