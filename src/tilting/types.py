"""Values and function protocols that all packages share.

Shapes: b images, n particles of each, latents of any trailing shape. Functions that touch networks take flat rows
(m = b * n, in chunks of what memory allows) and ``rows`` (m,), the index of the image, and so of the prompt, of each row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tilting.errors import RewardError as RewardError
from tilting.errors import TiltingError as TiltingError

if TYPE_CHECKING:
    from torch import Tensor


class Time(NamedTuple):
    """A point of the sampling grid: x_t = alpha x_0 + sigma noise.

    Attributes:
        t: timestep passed to the network (0..999 for Stable Diffusion, sigma * 1000 for flow models).
        alpha: signal scale, sqrt(ᾱ) for diffusion, 1 - t for flow.
        sigma: noise scale, sqrt(1 - ᾱ) for diffusion, t for flow.
    """

    t: float
    alpha: float
    sigma: float


class Prediction(NamedTuple):
    """Output of a denoiser at x_t.

    Attributes:
        eps: predicted noise, shape of x.
        x0: the Tweedie estimate E[x_0 | x_t], shape of x.
        correction: eps(cond) - eps(uncond), shape of x; zeros without a guidance scale.
    """

    eps: Tensor
    x0: Tensor
    correction: Tensor


class Transition(NamedTuple):
    """q(x_s | x_t) = N(mean, std² I).

    Attributes:
        mean: shape of x.
        std: one number; 0 for a deterministic step.
        x0: the estimate it was made from.
    """

    mean: Tensor
    std: float
    x0: Tensor


Denoise = Callable[["Tensor", Time, "Tensor"], Prediction]
"""(x (m, ...), time, rows (m,)) -> Prediction. One evaluation (NFE) per row; CFG counts as one."""

ValueFn = Callable[["Tensor", "Tensor"], "Tensor"]
"""(x0 (m, ...), rows (m,)) -> (m,) the reward of the decoded estimate; higher is better."""

NoisyValueFn = Callable[["Tensor", Time, "Tensor"], "Tensor"]
"""(x_t (m, ...), time, rows (m,)) -> (m,) the reward of noisy latents themselves."""

Watch = Callable[[Prediction, Prediction, Time, "Tensor"], None]
"""(controlled, pre-trained prediction of m latents, time, rows (m,))."""


class Reward(Protocol):
    """A score of images and their prompts, higher is better.

    Attributes:
        name: its spec, which manifests record.
        differentiable: whether a gradient with respect to the images exists.
    """

    @property
    def name(self) -> str: ...

    @property
    def differentiable(self) -> bool: ...

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] and b prompts -> (b,) float."""
        ...
