"""What callers of the Python functions may write for a value: a reward or method by name, a function, a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tilting.config.picture import read_picture
from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.method import Method
from tilting.presets import METHODS, Preset
from tilting.rewards import UserReward
from tilting.rewards.spec import build, parse_specs
from tilting.types import Reward

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def model_of(model: Any) -> Any:
    """The model as it is. Raises TiltingError for what `tilting.load` does not give."""
    if hasattr(model, "default_cfg") and hasattr(model, "schedule"):
        return model
    how = f"tilting.load({model!r})" if isinstance(model, str) else "tilting.load of a folder or hub id"
    raise TiltingError(f"the model must be a loaded one, not a {type(model).__name__}: give {how}")


def reward_of(reward: Reward | str | Sequence[str] | Callable[[Tensor, list[str]], Any] | None) -> Reward | None:
    """A reward from what was given for it.

    Args:
        reward: a `Reward`; a spec as ``--reward`` takes it, such as ``"jpeg"``, or several in a list; or a function
            (images (b, 3, h, w) in [0, 1], prompts) -> (b,), which is black-box unless ``function.differentiable`` is True; or
            None.

    Raises:
        TiltingError: a spec that cannot be read or does not load, or what is none of these.
    """
    if reward is None or (hasattr(reward, "name") and hasattr(reward, "differentiable") and callable(reward)):
        return cast("Reward | None", reward)
    if isinstance(reward, str) or (isinstance(reward, list | tuple) and all(isinstance(spec, str) for spec in reward)):
        return build(parse_specs([reward] if isinstance(reward, str) else list(reward)))
    if not callable(reward) or isinstance(reward, type):
        raise TiltingError(f"the reward must be a function of images and prompts, or a name such as 'clip', not {reward!r}")
    if str(getattr(reward, "__module__", "")).startswith("tilting.rewards"):
        name = getattr(reward, "__name__", "clip")
        raise TiltingError(f"tilting.rewards.{name} makes a reward and is none: call it, tilting.rewards.{name}()")
    return UserReward(reward, getattr(reward, "__name__", type(reward).__name__))


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


def picture_of(image: Tensor | Image.Image | str | Path, height: int, width: int) -> Tensor:
    """Pictures (n, 3, height, width) in [0, 1] as they are; one of PIL or of a file cut to that size. Raises TiltingError."""
    return image if isinstance(image, torch.Tensor) else read_picture(image, height, width)
