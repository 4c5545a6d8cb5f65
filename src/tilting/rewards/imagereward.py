"""`imagereward`: how well people would rate a picture for its prompt (Xu et al. 2023).

    r(x, c) = (s(h(x, c)) - 0.16717) / 1.0333

h is BLIP's text encoder attending to the picture, s five linear layers without activations. Range: normalised to mean 0 and
spread 1 over the training pictures, in practice about -2.5 to 2; nothing bounds it. Source: github.com/THUDM/ImageReward and
the hub's THUDM/ImageReward (Apache-2.0), file ``ImageReward.pt``, with keys ``blip.visual_encoder.*``,
``blip.text_encoder.*`` and ``mlp.layers.*``, read with ``weights_only``; the tokenizer is bert-base-uncased's with [DEC] and
[ENC] added. Preprocessing: shortest edge to 224 (bicubic), centre crop, as torchvision has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tilting.features.blip import BlipScorer, read_parts, read_words
from tilting.features.checkpoints import Source, explained, find_file, find_folder

WEIGHTS = Source("imagereward", "THUDM/ImageReward", ("ImageReward.pt",))
WORDS = Source("imagereward", "google-bert/bert-base-uncased", ("vocab.txt",), part="tokenizer")


@dataclass(frozen=True)
class ImageReward:
    """r(x, c) = (s(h(x, c)) - mean) / std.

    Attributes:
        embedder: the frozen network.
        name: the spec that names it.
        differentiable: True.
    """

    embedder: BlipScorer
    name: str = "imagereward"
    differentiable: bool = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] and b prompts -> (b,). Raises what `check_images` raises."""
        return self.embedder(images, prompts)


def imagereward(place: str | Path | None = None, words: str | Path | None = None) -> ImageReward:
    """ImageReward v1.0.

    Args:
        place: ImageReward.pt or a folder that has it; by default ``~/.cache/tilting/imagereward``, then the hub.
        words: the folder or name of bert-base-uncased's tokenizer; by default the folder of the file if it has one, the
            user's cache, then the hub.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a wrong or truncated checkpoint.
    """
    path = find_file(WEIGHTS, place)
    parts = read_parts(path)
    source = find_folder(WORDS, words, ("vocab.txt", "tokenizer.json"), path.parent)
    with explained(WORDS, source):
        tokenizer = read_words(source)
    return ImageReward(BlipScorer(*parts, tokenizer), "imagereward" if place is None else f"imagereward:{place}")
