"""The pre-training loss of a network's own output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilting.schedule import output_of
from tilting.types import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.schedule import Kind
    from tilting.types import Time


def residual(prediction: Prediction, clean: Tensor, noise: Tensor, t: Time, kind: Kind) -> Tensor:
    """The network's own output less its target, (m, ...).

    Args:
        prediction: of α x_0 + σ ε, (m, ...).
        clean, noise: x_0 and ε; another prediction's x0 and eps, and it is the difference of two outputs.
        t: their time.
        kind: what the network's output is.
    """
    return output_of(kind, Prediction(prediction.eps - noise, prediction.x0 - clean, prediction.correction), t)


def training_error(prediction: Prediction, clean: Tensor, noise: Tensor, t: Time, kind: Kind) -> Tensor:
    """Squared `residual`, averaged over dimensions, (m,)."""
    return residual(prediction, clean, noise, t, kind).flatten(1).square().mean(1)


def distance(one: Prediction, other: Prediction, t: Time, kind: Kind) -> Tensor:
    """Squared difference of two outputs at the same point, averaged over dimensions, (m,)."""
    return training_error(one, other.x0, other.eps, t, kind)


def mixed(new: Prediction, old: Prediction, share: float) -> Prediction:
    """share · new + (1 - share) · old, of outputs at the same point and so of all that they mean; share may be negative."""
    return Prediction(*(b + share * (a - b) for a, b in zip(new, old, strict=True)))
