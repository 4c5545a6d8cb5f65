"""A reward on another device: pictures are sent there, values and gradients come back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from tilting.models.placement import device_of
from tilting.rewards.weighted_sum import Combined

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.types import Reward


@dataclass(frozen=True)
class Elsewhere:
    """r(x, c) of a reward whose networks follow its pictures' device.

    Attributes:
        reward: any; all that is not said here is its own.
        device: of its networks, such as "cuda:1".
    """

    reward: Any
    device: str
    waits = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # which a copy that is being made is asked for
            raise AttributeError(name)
        return getattr(self.__dict__["reward"], name)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) in [0, 1] and b prompts -> (b,) on the images' device. Raises what the reward raises."""
        values: Any = self.reward(images.to(self.device), prompts)
        return values.to(images.device) if hasattr(values, "to") else values


def elsewhere(reward: Reward, device: str | None) -> Reward:
    """A reward, each part of it, on a device; None leaves it where its pictures are. Raises TiltingError for one not here."""
    if device is None:
        return reward
    if isinstance(reward, Combined):
        return cast(Any, replace(reward, parts=tuple((elsewhere(part, device), weight) for part, weight in reward.parts)))
    return reward if isinstance(reward, Elsewhere) else cast(Any, Elsewhere(reward, str(device_of(device, "reward-device"))))
