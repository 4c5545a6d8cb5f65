"""`pickscore`: which picture of a prompt people pick, a CLIP trained on their choices (Kirstain et al. 2023).

    r(x, c) = cos(image(x), text(c))

The raw cosine, in [-1, 1] and about 0.17 to 0.24 in practice; the official score is exp(logit_scale), about 100, times it.
Source: the hub's yuvalkirstain/PickScore_v1, a ViT-H-14 in transformers' format (config.json, model.safetensors), with the
tokenizer and the preprocessing of laion/CLIP-ViT-H-14-laion2B-s32B-b79K (MIT): resize of the shortest edge to 224 (bicubic)
and centre crop. Licence: MIT (github.com/yuvalkirstain/PickScore).
"""

from __future__ import annotations

from pathlib import Path

from tilting.features.checkpoints import Source, explained, find_folder
from tilting.features.clip import ClipEmbedder, read_clip
from tilting.rewards.clip import Clip

WEIGHTS = Source("pickscore", "yuvalkirstain/PickScore_v1")
WORDS = ("tokenizer.json", "vocab.json")
"""A folder with one of these has CLIP's tokenizer."""


def laion(reward: str) -> Source:
    """Where the tokenizer and the preprocessing of a reward made from LAION's ViT-H-14 come from."""
    files = ("tokenizer.json, tokenizer_config.json and preprocessor_config.json",)
    return Source(reward, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", files, part="tokenizer")


def pickscore(folder: str | Path | None = None, processor: str | Path | None = None) -> Clip:
    """PickScore v1, as the raw cosine.

    Args:
        folder: a folder of its files, or a name on the hub; by default ``~/.cache/tilting/pickscore``, then the hub.
        processor: the folder or name with the tokenizer and preprocessor_config.json; by default the same folder if it has
            them, the user's cache, then laion's.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a folder whose weights are not all there.
    """
    place, words = find_folder(WEIGHTS, folder), laion("pickscore")
    with explained(WEIGHTS, place):
        model = read_clip(place)
    beside = place if isinstance(place, Path) else None
    source = find_folder(words, processor, WORDS, beside)
    with explained(words, source, beside):
        embedder = ClipEmbedder(source, model=model)
    return Clip(embedder, "pickscore" if folder is None else f"pickscore:{folder}")
