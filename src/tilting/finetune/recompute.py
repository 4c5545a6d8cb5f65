"""A function of a latent that is made twice: now without gradients, and again with them on the way back.

    forward    y = f(x; θ)                                nothing is held of it but x
    backward   y = f(x; θ) again, then ∂y/∂x and ∂y/∂θ against the slopes that arrive

This is gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) of a function whose parameters are known. PyTorch's own
does without knowing them: it records the first pass too and looks at every tensor of it, which on a small network costs a
tenth of the call, and its record stays until the way back. θ that is not named here gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Pure = Callable[[Tensor], tuple[Tensor, ...]]


def recomputed(function: Pure, x: Tensor, parameters: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """The values of ``function(x)``, whose activations are made again on the way back.

    Args:
        function: of x; the same values whenever it is called.
        x: (b, ...).
        parameters: all that it depends on and that is trained; where they are not known, PyTorch's checkpoint finds them.
    """
    if not parameters:
        values: Any = checkpoint(function, x, use_reentrant=False)
        return values
    return _Recomputed.apply(function, x, *parameters)  # type: ignore[return-value]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Pure, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *parameters)
        return function(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            here = x.detach().requires_grad_(wanted[0])
            values = ctx.function(here)
        inputs = [v for v, want in zip((here, *parameters), wanted, strict=True) if want]
        live = [i for i, (v, slope) in enumerate(zip(values, slopes, strict=True)) if slope is not None and v.requires_grad]
        if not live:
            return (None,) * (1 + len(wanted))
        outputs, against = [values[i] for i in live], [slopes[i] for i in live]
        found = iter(torch.autograd.grad(outputs, inputs, against, allow_unused=True))
        return None, *(next(found) if want else None for want in wanted)
