"""`hpsv2`: Human Preference Score v2, a CLIP trained on choices between pictures of a prompt (Wu et al. 2023).

    r(x, c) = cos(image(x), text(c))

The raw cosine, in [-1, 1] and about 0.2 to 0.35 in practice; tables often show it times 100. Source:
github.com/tgxs002/HPSv2 and the hub's xswu/HPSv2 (Apache-2.0). Its checkpoints ``HPS_v2_compressed.pt`` (v2.0, the default
of the published code) and ``HPS_v2.1_compressed.pt`` are ViT-H-14 state dicts of open_clip in half precision, read with
``weights_only`` and mapped onto transformers' CLIPModel in float32; ``HPS_v2.pt``, which holds more than tensors, is refused.
The published preprocessing is not CLIP's: the *longest* edge is resized to 224 (bicubic) and the picture centred on black.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilting.errors import TiltingError, nearest
from tilting.features.checkpoints import Source, explained, find_file, find_folder, read_state
from tilting.features.clip import ClipEmbedder
from tilting.features.open_clip import read_open_clip
from tilting.features.pixels import Pixels
from tilting.rewards.clip import Clip
from tilting.rewards.pickscore import WORDS, laion

FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}


def hpsv2(place: str | Path | None = None, processor: str | Path | None = None, version: str = "2.0") -> Clip:
    """HPS v2, as the raw cosine.

    Args:
        place: the .pt file or a folder that has it; by default ``~/.cache/tilting/hpsv2``, then the hub.
        processor: the folder or name with CLIP's tokenizer; by default the folder of the file if it has one, then laion's.
        version: "2.0" or "2.1", which file is looked for; a file that is named is what it is.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a wrong or truncated checkpoint.
    """
    if version not in FILES:
        raise TiltingError(f"there is no hpsv2 of version {version!r}{nearest(version, FILES)}")
    path = find_file(Source("hpsv2", "xswu/HPSv2", (FILES[version],)), place)
    model = read_open_clip(read_state(path, "hpsv2"), path, "hpsv2")
    shape: Any = model.config
    side, words = shape.vision_config.image_size, laion("hpsv2")
    source = find_folder(words, processor, WORDS, path.parent)
    with explained(words, source):
        embedder = ClipEmbedder(source, model=model, pixels=Pixels(side, side, fit="pad"))
    return Clip(embedder, "hpsv2" if place is None else f"hpsv2:{place}")
