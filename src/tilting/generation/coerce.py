"""Conversion of arguments of the Python functions: rewards and methods by name, functions, pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import getattr_static
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tilting.config.picture import read_picture, read_video, video_of
from tilting.errors import TiltingError
from tilting.lazy import np, torch
from tilting.method import Method
from tilting.presets import METHODS, Preset
from tilting.rewards import UserReward
from tilting.rewards.spec import build, parse_specs
from tilting.types import Reward

if TYPE_CHECKING:
    from torch import Tensor


def model_of(model: Any) -> Any:
    """The model as it is. Raises TiltingError for what `tilting.load` does not give."""
    if isinstance(model, type):
        raise TiltingError(f"the model must be a loaded one, and {model.__name__} is a class: give {model.__name__}(...)")
    if hasattr(model, "default_cfg") and hasattr(model, "schedule"):
        return model
    how = f"tilting.load({model!r})" if isinstance(model, str) else "tilting.load of a folder or hub id"
    raise TiltingError(f"the model must be a loaded one, not a {type(model).__name__}: give {how}")


def reward_of(reward: Reward | str | Sequence[str] | Callable[[Tensor, list[str]], Any] | None) -> Reward | None:
    """A reward from what was given for it.

    Args:
        reward: a `Reward`; a spec as ``--reward`` takes it, such as ``"jpeg"``, or several in a list; or a function
            (images (b, 3, h, w) in [0, 1], prompts) -> (b,), which is tried for a gradient where one is needed, unless
            ``function.differentiable`` says; or None.

    Raises:
        TiltingError: a spec that cannot be read or does not load, or what is none of these.
    """
    if isinstance(reward, type):
        raise TiltingError(f"the reward {reward.__name__} is a class: give one of it, {reward.__name__}()")
    if reward is None or (_has(reward, "name") and _has(reward, "differentiable") and callable(reward)):
        return cast("Reward | None", reward)
    if isinstance(reward, str) or (isinstance(reward, list | tuple) and all(isinstance(spec, str) for spec in reward)):
        return build(parse_specs([reward] if isinstance(reward, str) else list(reward)))
    if not callable(reward):
        raise TiltingError(f"the reward must be a function of images and prompts, or a name such as 'clip', not {reward!r}")
    if str(getattr(reward, "__module__", "")).startswith("tilting.rewards"):
        name = getattr(reward, "__name__", "clip")
        raise TiltingError(f"tilting.rewards.{name} makes a reward and is none: call it, tilting.rewards.{name}()")
    return UserReward(reward, getattr(reward, "__name__", type(reward).__name__))


def _has(thing: object, name: str) -> bool:
    """Whether it has an attribute, whose value is not asked for: a function is tried by that."""
    return getattr_static(thing, name, thing) is not thing or hasattr(thing, name)


class Composed(Preset):
    """A method composed by hand, as a preset: the same for a run of any number of steps.

    Attributes:
        method: what it builds.
    """

    paper = "composed by hand"

    def __init__(self, method: Method):
        self.method, self.name = method, method.name

    def build(self, steps: int) -> Method:
        return self.method


def preset_of(method: Preset | Method | str | None) -> Preset:
    """A preset from itself, from its name with its defaults, or from a `Method`; ``base`` for None. Raises TiltingError."""
    if isinstance(method, Method):
        return Composed(method)
    if isinstance(method, str):
        return METHODS.find(method)()
    if isinstance(method, type) or not (method is None or hasattr(method, "build")):
        raise TiltingError(f"the method must be a preset such as tilting.presets.code(), or its name, not {method!r}")
    return METHODS["base"]() if method is None else method


def picture_of(image: Any, height: int, width: int, frames: int | None = None) -> Tensor:
    """Pictures (n, 3, height, width) in [0, 1], or with ``frames`` videos (n, frames, 3, height, width).

    Args:
        image: a tensor (n, 3, h, w) or (3, h, w), which stays as it is; an array (n, h, w, 3) or (h, w, 3), of bytes or of
            floats in [0, 1]; a picture of PIL, a file or its bytes; or a list of any of these.
        height, width: what files, pictures of PIL and arrays are cut to.
        frames: of a video, whose first are taken, of its file, or of a list, an array or a tensor of them; a still is them all.

    Raises:
        TiltingError: for what is none of these.
    """
    if frames is not None:
        if isinstance(image, torch.Tensor):
            return image if image.ndim == 5 else video_of(list((image if image.ndim == 4 else image[None])[:, None]), frames)
        video = isinstance(image, str | Path)
        return (
            read_video(image, frames, height, width)
            if video
            else video_of(list(picture_of(image, height, width)[:, None]), frames)
        )
    if isinstance(image, torch.Tensor):
        return image[None] if image.ndim == 3 else image
    several = isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)
    if several and len(image):
        return torch.cat([picture_of(one, height, width) for one in image])
    if isinstance(image, np.ndarray):
        return _array(image, height, width)
    return read_picture(image, height, width)  # type: ignore[arg-type]


def _array(pixels: np.ndarray, height: int, width: int) -> Tensor:
    floats = pixels.dtype.kind == "f"
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or not (pixels.dtype == np.uint8 or floats):
        what = f"not {pixels.shape} of {pixels.dtype}"
        raise TiltingError(f"an array of a picture is (h, w, 3), of bytes (uint8) or of floats in [0, 1], {what}")
    if floats and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise TiltingError(f"an array of floats must be in [0, 1], not from {pixels.min():.3g} to {pixels.max():.3g}")
    if floats and pixels.shape == (height, width, 3):
        return torch.from_numpy(pixels).float().permute(2, 0, 1).contiguous()[None]
    bytes_ = (pixels * 255).round().astype(np.uint8) if floats else pixels
    from PIL.Image import fromarray

    return read_picture(fromarray(bytes_), height, width)
