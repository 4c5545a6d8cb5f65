"""Gradient checkpointing of a function of a latent: computed without gradients, and again with them in the backward pass.

    forward    y = f(x; θ)                                nothing is held of it but x
    backward   y = f(x; θ) again, then ∂y/∂x and ∂y/∂θ against the slopes that arrive

This is gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) of a function whose parameters are known. PyTorch's own
does without knowing them: it records the first pass too and looks at every tensor of it, which on a small network costs a
tenth of the call, and its record stays until the way back. θ that is not named here gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from tilting.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Pure = Callable[["Tensor"], "tuple[Tensor, ...]"]


def recomputed(function: Pure, x: Tensor, parameters: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """The values of ``function(x)``, whose activations are made again on the way back.

    Args:
        function: of x; the same values whenever it is called.
        x: (b, ...).
        parameters: all that it depends on and that is trained; where they are not known, PyTorch's checkpoint finds them.
    """
    if not parameters:
        values: Any = torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)
        return values
    return _recomputed().apply(function, x, *parameters)


@cache
def _recomputed() -> Any:
    """The autograd function, made when torch is there."""

    class Recomputed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, function: Pure, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
            ctx.function = function
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, *parameters)
            return function(x)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            x, *parameters = ctx.saved_tensors
            wanted = ctx.needs_input_grad[1:]
            with torch.enable_grad():
                here = x.detach().requires_grad_(wanted[0])
                values = ctx.function(here)
            return None, *slopes_of(values, slopes, (here, *parameters), wanted)

    return Recomputed


def slopes_of(
    values: Sequence[Tensor], against: Sequence[Tensor | None], inputs: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Vector-Jacobian products: the gradient of each input; None if it is not wanted, or no value depends on it."""
    pairs = [(v, slope) for v, slope in zip(values, against, strict=True) if slope is not None and v.requires_grad]
    asked = [v for v, want in zip(inputs, wanted, strict=True) if want]
    if not pairs or not asked:
        return [None] * len(inputs)
    outputs, slopes = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, asked, slopes, allow_unused=True))
    return [next(found) if want else None for want in wanted]
