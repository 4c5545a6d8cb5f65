"""`aesthetic`: how much people like a picture on average, LAION's improved aesthetic predictor (v2).

    r(x) = s(e(x) / |e(x)|),   e: the image embedding of CLIP ViT-L/14,   s: five linear layers, 768-1024-128-64-16-1

Source: github.com/christophschuhmann/improved-aesthetic-predictor (simple_inference.py). Its checkpoint is
``sac+logos+ava1-l14-linearMSE.pth``, a state dict with keys ``layers.0.weight`` ..., read with ``weights_only``; the hub's
copy is ``aesthetic-model.pth`` of trl-lib/ddpo-aesthetic-predictor. Range: ratings of 1 to 10, in practice about 3 to 8;
nothing bounds it. Licence: Apache-2.0 (predictor), MIT (OpenAI's CLIP). The published code crops as torchvision does, this
one as CLIP's own processor in transformers does: pictures whose margin is odd are shifted by at most one pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tilting.errors import TiltingError
from tilting.features.checkpoints import Source, explained, find_file, find_folder, read_state
from tilting.features.clip import ClipEmbedder
from tilting.features.images import check_images
from tilting.features.linear_head import LinearHead, read_head

HEAD = Source(
    "aesthetic", "trl-lib/ddpo-aesthetic-predictor", ("sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.pth"),
    "https://github.com/christophschuhmann/improved-aesthetic-predictor",
)  # fmt: skip
CLIP = Source("aesthetic", "openai/clip-vit-large-patch14", part="CLIP ViT-L/14")


@dataclass(frozen=True)
class Aesthetic:
    """r(x) = s(e(x) / |e(x)|); the prompt has no part in it.

    Attributes:
        embedder: the frozen CLIP.
        head: the frozen linear layers.
        name: the spec that names it.
        differentiable: True.
    """

    embedder: ClipEmbedder
    head: LinearHead
    name: str = "aesthetic"
    differentiable: bool = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1]; prompts are only counted -> (b,). Raises what `check_images` raises."""
        check_images(images, prompts)
        return self.head(self.embedder.image(images))


def aesthetic(place: str | Path | None = None, clip: str | Path | None = None) -> Aesthetic:
    """LAION's aesthetic predictor.

    Args:
        place: its .pth file or a folder that has it; by default ``~/.cache/tilting/aesthetic``, then the hub.
        clip: a transformers CLIP of the width of the head, a folder or a name on the hub; by default the folder of the file
            if it is one, then openai/clip-vit-large-patch14.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a wrong or truncated checkpoint.
    """
    path = find_file(HEAD, place)
    head = read_head(read_state(path, "aesthetic"), path, "aesthetic")
    folder = find_folder(CLIP, clip, beside=path.parent)
    with explained(CLIP, folder):
        embedder = ClipEmbedder(folder)
    if embedder.dim != head.width:
        raise TiltingError(f"the CLIP {str(folder)!r} has embeddings of {embedder.dim}, 'aesthetic' needs {head.width}")
    return Aesthetic(embedder, head, "aesthetic" if place is None else f"aesthetic:{place}")
