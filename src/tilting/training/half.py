"""Scaling of gradients through a network in half precision.

    forward    y = f(x; θ)                              as it is; the graph inside is kept
    backward   g_x, g_θ = 2^-k (∂y/∂(x, θ))ᵀ (2^k g_y)  with 2^k max|g_y| in [1, 2)

fp16 loses what is below 6e-8 and ends at 65504. Mixed precision (Micikevicius et al. 2018, arXiv 1710.03740) multiplies the
loss by one number for that, found by failing steps. Here slopes come in every size: of rewards, of adjoints, of a chain of
steps that each make them larger or smaller. So each call of the network has a power of two of its own, which is exact, needs
no memory between steps, and holds for slopes that are asked for without a loss. What goes in and comes out is float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from tilting.lazy import torch
from tilting.objectives.batch import NETWORKS, TrainBatch
from tilting.objectives.recompute import Pure, slopes_of
from tilting.types import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.types import Denoise, Time


def ranged(batch: TrainBatch) -> TrainBatch:
    """A batch whose networks compute in fp16, with gradients that keep to its range; it knows all that is trained."""

    def near(network: Denoise) -> Denoise:
        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            return Prediction(*in_range(lambda x: network(x, t, rows), x, batch.trained))

        return denoise

    return replace(batch, **{name: near(getattr(batch, name)) for name in NETWORKS[:-1]})


def in_range(function: Pure, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The values of ``function(x)``, whose gradients are computed near 1.

    Args:
        function: of x, float32 to float32, half precision inside.
        x: (b, ...).
        parameters: all that it depends on and that is trained, float32; others get no gradient.
    """
    return _in_range().apply(function, x, *parameters) if torch.is_grad_enabled() else function(x)


@cache
def _in_range() -> Any:
    """The autograd function, made when torch is there."""

    class InRange(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, function: Pure, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                here = x.detach().requires_grad_() if x.requires_grad else x
                values = function(here)
            ctx.set_materialize_grads(False)
            ctx.inside = here, parameters, values
            return tuple(value.detach() for value in values)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            here, parameters, values = ctx.inside
            peak = max((slope.abs().max().item() for slope in slopes if slope is not None and slope.numel()), default=0.0)
            power = max(-126, min(126, 1 - math.frexp(peak)[1])) if peak and math.isfinite(peak) else 0
            larger = [slope if slope is None else slope * 2.0**power for slope in slopes]
            found = slopes_of(values, larger, (here, *parameters), ctx.needs_input_grad[1:])
            return None, *(slope if slope is None else slope * 2.0**-power for slope in found)

    return InRange
