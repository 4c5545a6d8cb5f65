"""Validation of a reward's inputs and outputs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tilting.errors import RewardError, TiltingError, outlived
from tilting.features.images import check_images
from tilting.features.once import asked_once
from tilting.features.video import evenly
from tilting.lazy import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tilting.types import Reward


class Scorer:
    """A reward whose images are checked, and which answers an empty batch without being asked. A subclass gives `values`, and
    has a ``name``, the spec that names it, and ``differentiable``."""

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The values (b,) of checked images, b at least 1."""
        raise NotImplementedError

    def __call__(self: Any, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] and b prompts -> (b,). Raises what `check_images` raises."""
        _check(self, images, prompts)
        if not len(images):
            return images.flatten(1).sum(1)
        return self.values(images, prompts)


def waits(reward: object) -> bool:
    """Whether a reward, or a part of one, is waited for while this device could go on: by a server, or another device."""
    return getattr(reward, "waits", False) is True


def precise(images: Tensor) -> Tensor:
    """In float64 as they are, else in float32."""
    return images if images.dtype == torch.float64 else images.float()


def takes_videos(reward: object) -> bool:
    """Whether a reward takes whole videos: its ``videos`` is True (formerly ``films``)."""
    return bool(getattr(reward, "videos", False) or getattr(reward, "films", False))


def compares(reward: object) -> bool:
    """Whether a reward compares the images of a batch: its ``batch_dependent`` is True."""
    return getattr(reward, "batch_dependent", False) is True


def checked(reward: Reward, images: Tensor, prompts: list[str], frames: str = "all") -> Tensor:
    """Call a reward and verify its answer; gradients pass unchanged.

    Args:
        reward: any reward.
        images: (b, 3, h, w) float in [0, 1]; or videos (b, frames, 3, h, w), whose score is the mean over frames unless the
            reward `takes_videos`.
        prompts: b strings.
        frames: which, see `chosen`.

    Returns:
        (b,) finite floats.

    Raises:
        RewardError: it raised, gave something else than a float tensor (b,), or a value that is not finite; names the
            reward and, where one image is to blame, its row.
        TiltingError: the images or prompts themselves are wrong.
    """
    if images.ndim == 5 and not takes_videos(reward):
        return framewise(partial(checked, reward), images, prompts, frames, compares(reward))
    _check(reward, images, prompts)
    try:
        values = reward(images, prompts)
    except TiltingError:
        raise
    except BaseException as error:
        row = 0 if len(images) == 1 else None
        raise RewardError(f"reward {reward.name!r} raised {outlived(error)}", row) from error
    return check_values(reward.name, values, len(images))


def _check(reward: Reward, images: Tensor, prompts: list[str]) -> None:
    if images.ndim == 5 and takes_videos(reward):
        check_images(images.flatten(0, 1), [prompt for prompt in prompts for _ in range(images.shape[1])])
    else:
        check_images(images, prompts)


def chosen(frames: str, count: int) -> list[int]:
    """Which of a video's frames are scored: "all", the "first", the "middle" one, or a number of them, evenly spaced."""
    named = {"all": count, "first": 0, "middle": 1}
    wanted = named[frames] if frames in named else int(frames)
    return evenly(count, wanted) if wanted else [0]


@asked_once
def _frames(frames: str, videos: Tensor) -> tuple[Tensor, Tensor]:
    """The frames of videos that are scored, (b, k, 3, h, w), and these as pictures, (b k, 3, h, w)."""
    videos = videos if frames == "all" else videos[:, chosen(frames, videos.shape[1])]
    return videos, videos.flatten(0, 1)


def framewise(
    score: Callable[[Tensor, list[str]], Tensor], videos: Tensor, prompts: list[str], frames: str = "all", apart: bool = False
) -> Tensor:
    """The mean over frames (b,) of what a score of pictures says of videos (b, frames, 3, h, w).

    Args:
        score, videos, prompts: see `checked`.
        frames: which, see `chosen`.
        apart: ask of one frame of all videos at a time: to a score that `compares`, a video's own frames are no other images.
    """
    videos, pictures = _frames(frames, videos)
    if apart:
        return torch.stack([score(one, prompts) for one in videos.unbind(1)]).mean(0)
    count = videos.shape[1]
    try:
        each = score(pictures, [prompt for prompt in prompts for _ in range(count)])
    except RewardError as error:
        raise RewardError(str(error), None if error.row is None else error.row // count) from error
    return each.unflatten(0, (-1, count)).mean(1)


def check_values(name: str, values: object, count: int) -> Tensor:
    """The values of reward ``name`` if they are a finite float tensor (count,); else RewardError with the first bad row."""
    if not isinstance(values, torch.Tensor):
        raise RewardError(f"reward {name!r} must return a tensor of shape ({count},), not {type(values).__name__}")
    if tuple(values.shape) != (count,):
        raise RewardError(f"reward {name!r} must return shape ({count},), one value per image, not {tuple(values.shape)}")
    if not values.is_floating_point():
        raise RewardError(f"reward {name!r} must return floats, not {values.dtype}")
    bad = (~torch.isfinite(values.detach())).nonzero()
    if len(bad):
        row = int(bad[0])
        raise RewardError(f"reward {name!r} gave {float(values.detach()[row])} for image {row} of {count}", row)
    return values
