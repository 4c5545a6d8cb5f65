"""The head of linear layers that maps an embedding to a score, in both aesthetic predictors and in ImageReward.

    s(e) = W5 (W4 (W3 (W2 (W1 e + b1) + b2) + b3) + b4) + b5,  widths 768-1024-128-64-16-1

There is no activation between them (in the published codes it is commented out) and the dropout is off at inference, so
that the whole is one affine map; the layers are kept because the checkpoints have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tilting.features.checkpoints import Frozen, fill, shape_of

PLACES = (0, 2, 4, 6, 7)
"""Indices of the linear layers in the published `nn.Sequential`; 1, 3 and 5 are dropout."""
EVEN = (0, 2, 4, 6, 8)
"""The same with dropout after each linear layer."""
WIDTHS = (1024, 128, 64, 16, 1)


class LinearHead(Frozen):
    """s(e), without activations.

    Args:
        widths: of the embedding, of each layer, and 1.
        places: of the layers.
    """

    def __init__(self, widths: tuple[int, ...] = (768, *WIDTHS), places: tuple[int, ...] = PLACES):
        super().__init__()
        self.width = widths[0]
        parts: list[nn.Module] = [nn.Identity() for _ in range(places[-1] + 1)]
        for k, place in enumerate(places):
            parts[place] = nn.Linear(widths[k], widths[k + 1])
        self.layers = nn.Sequential(*parts)

    def forward(self, embeds: Tensor) -> Tensor:
        """Embeddings (b, widths[0]) -> scores (b,), in the dtype of the weights."""
        self.follow(embeds)
        first: Any = self.layers[0]
        return self.layers(embeds.to(first.weight.dtype))[:, 0]


def read_head(
    state: Mapping[str, Tensor], path: Path, name: str, prefix: str = "layers.", places: tuple[int, ...] = PLACES
) -> LinearHead:
    """The head of a checkpoint, frozen.

    Args:
        state: keys ``layers.0.weight``, ``layers.0.bias``, ``layers.2.weight`` ... behind the prefix, and nothing else.
        path: of the checkpoint, for the refusal.
        name: of the reward, for the refusal.
        prefix: what stands before the number of a layer.
        places: the numbers of the layers.

    Raises:
        TiltingError: keys are missing, unexpected or of another shape.
    """
    published = zip((768, *WIDTHS), WIDTHS, strict=False)
    shapes = [shape_of(state, f"{prefix}{k}.weight", b, a) for k, (a, b) in zip(places, published, strict=True)]
    widths = (shapes[0][1], *(shape[0] for shape in shapes))
    make, rule = (lambda: LinearHead(widths, places)), lambda key: (prefix + key.removeprefix("layers."), lambda t: t)
    return fill(make, state, rule, path, name)
