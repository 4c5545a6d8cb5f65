"""Moving averages of trained weights.

    θ̄ <- d θ̄ + (1 - d) θ      after every training step that was made, from θ̄ = θ before the first

so that after k steps θ̄_k = d^k θ_0 + (1 - d) Σ_j d^(k - j) θ_j. Of a LoRA its factors are averaged, as its users do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tilting.types import TiltingError

EMA = "ema"
"""The average that `--ema` asks for."""


class Average:
    """An exponential moving average of parameters.

    Args:
        parameters: trained tensors by name.
        decay: (training steps made, this one included) -> d, at least 0 and at most 1.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: Callable[[int], float]):
        self.parameters, self.decay = parameters, decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after a training step."""
        d = self.decay(step)
        for name, p in self.parameters.items():
            self.values[name].mul_(d).add_(p, alpha=1 - d)

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Go back to a checkpoint's. Raises TiltingError if it has none of some parameter."""
        for name, mine in self.values.items():
            if name not in values or values[name].shape != mine.shape:
                raise TiltingError(f"the checkpoint holds no average of {name}")
            mine.copy_(values[name])

    @contextmanager
    def on(self) -> Iterator[None]:
        """The parameters are their averages inside the block; nothing may be back-propagated in it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, p in self.parameters.items():
            p.data, self.values[name] = self.values[name], p.data
