"""Declaration and registry of metrics.

    @METRICS.declare("tclip", "T-CLIP", "2.5 max(cos, 0)", takes=("clip", "captions"), judges=True)
    def t_clip(images: Tensor, texts: Tensor) -> Tensor: ...

`tilting.evaluation` computes the inputs by name and passes each metric those that it takes. Other packages register metrics by
entry points of the group ``tilting.metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tilting.declare import Registry

INPUTS = {
    "images": "(b, 3, h, w) float in [0, 1], or videos (b, frames, 3, h, w)",
    "prompts": "b strings",
    "judge": "pocket-judge, a `tilting.metrics.judge.PocketJudge`",
    "clip": "(b, d) CLIP embeddings of the images",
    "captions": "(b, d) CLIP embeddings of `tilting.metrics.alignment.caption` of their prompts",
    "clip_reference": "(b, d) those of the pictures that the images are compared with",
    "gram": "(b, d) VGG Gram features of the images",
    "gram_reference": "(b, d) those of the pictures that the images are compared with",
    "spread": "(b, d) features that diversity is measured in",
    "reference": "the pictures that the images are compared with, in their shape; where there is LPIPS",
    "lpips": "LPIPS, a `tilting.features.lpips.Lpips`, or None",
    "fid": "(n, d) features that FID is measured in",
}
"""Inputs that a metric may take."""


@dataclass(frozen=True)
class Metric:
    """A metric of finished images.

    Attributes:
        name: its key in metrics.json.
        function: from its inputs to a value per image (b,) float, NaN for none, or to one number.
        title: its title in reports.
        about: what the value is, with its unit or range.
        takes: names of its inputs, keys of `INPUTS`.
        of: what it measures: each image, the images of a prompt, or one set of images against another.
        better: whether higher or lower values are better.
        needs: options of `tilting evaluate` without which it cannot be computed.
        judges: whether a drop indicates reward hacking, if no reward uses its network.
        fewest: minimum number of images on each side for a meaningful value.
    """

    name: str
    function: Callable[..., Any]
    title: str
    about: str
    takes: tuple[str, ...]
    of: Literal["image", "prompt", "sets"] = "image"
    better: Literal["higher", "lower"] = "higher"
    needs: tuple[str, ...] = ()
    judges: bool = False
    fewest: int = 0

    def __call__(self, inputs: Mapping[str, Any], others: Mapping[str, Any] | None = None) -> Any:
        """The value for inputs by name; of "sets", against the inputs of another set."""
        theirs = [] if others is None else [others[name] for name in self.takes]
        return self.function(*(inputs[name] for name in self.takes), *theirs)


METRICS: Registry[Metric] = Registry("metric", "tilting.metrics", Metric)
