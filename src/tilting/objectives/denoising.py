"""The error that pre-training minimises, of the network's own output."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.schedule import Kind
    from tilting.types import Prediction, Time


def training_error(prediction: Prediction, clean: Tensor, noise: Tensor, t: Time, kind: Kind) -> Tensor:
    """Squared error of the network's own target, averaged over dimensions, (m,).

    Args:
        prediction: of α x_0 + σ ε, (m, ...).
        clean, noise: x_0 and ε.
        t: their time.
        kind: what the network's output is.
    """
    eps, x0 = prediction.eps - noise, prediction.x0 - clean
    by_kind = {"epsilon": eps, "v_prediction": t.alpha * eps - t.sigma * x0, "flow": eps - x0, "sample": x0}
    return by_kind[kind].flatten(1).square().mean(1)
