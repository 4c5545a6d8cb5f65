"""Human preference rewards: networks trained on ratings and choices, whose weights are downloaded.

    aesthetic      r(x) = s(e(x) / |e(x)|)                      LAION's improved predictor (v2); s: five linear layers
    pickscore      r(x, c) = cos(image(x), text(c))             a CLIP trained on choices (Kirstain et al. 2023)
    hpsv2          r(x, c) = cos(image(x), text(c))             another (Wu et al. 2023)
    aesthetic-v2-5 r(x) = s(e(x) / |e(x)|)                      the same on SigLIP (discus0434 2024)
    mps            r(x, c) = cos(h(x, c), text(c))              h: CLIP's picture tokens read words (Zhang et al. 2024)
    imagereward    r(x, c) = (s(h(x, c)) - 0.16717) / 1.0333    h: BLIP, its text attending to the picture (Xu et al. 2023)

aesthetic: e is the image embedding of CLIP ViT-L/14, the widths of s are 768-1024-128-64-16-1. Source:
github.com/christophschuhmann/improved-aesthetic-predictor (simple_inference.py). Its checkpoint is
``sac+logos+ava1-l14-linearMSE.pth``, a state dict with keys ``layers.0.weight`` ..., read with ``weights_only``; the hub's copy
is ``aesthetic-model.pth`` of trl-lib/ddpo-aesthetic-predictor. Range: ratings of 1 to 10, in practice about 3 to 8; nothing
bounds it. Licence: Apache-2.0 (predictor), MIT (OpenAI's CLIP). The published code crops as torchvision does, this one as
CLIP's own processor in transformers does: pictures whose margin is odd are shifted by at most one pixel.

pickscore: the raw cosine, in [-1, 1] and about 0.17 to 0.24 in practice; the official score is exp(logit_scale), about 100,
times it. Source: the hub's yuvalkirstain/PickScore_v1, a ViT-H-14 in transformers' format (config.json, model.safetensors),
with the tokenizer and the preprocessing of laion/CLIP-ViT-H-14-laion2B-s32B-b79K (MIT): resize of the shortest edge to 224
(bicubic) and centre crop. Licence: MIT (github.com/yuvalkirstain/PickScore).

hpsv2: the raw cosine, in [-1, 1] and about 0.2 to 0.35 in practice; tables often show it times 100. Source:
github.com/tgxs002/HPSv2 and the hub's xswu/HPSv2 (Apache-2.0). Its checkpoints ``HPS_v2_compressed.pt`` (v2.0, the default of
the published code) and ``HPS_v2.1_compressed.pt`` are ViT-H-14 state dicts of open_clip in half precision, read with
``weights_only`` and mapped onto transformers' CLIPModel in float32; ``HPS_v2.pt``, which holds more than tensors, is refused.
The published preprocessing is not CLIP's: the *longest* edge is resized to 224 (bicubic) and the picture centred on black.

aesthetic-v2-5: e is the pooled output of SigLIP so400m-patch14-384, the widths of s are 1152-1024-128-64-16-1. Source:
github.com/discus0434/aesthetic-predictor-v2-5 (AGPL-3.0), file ``models/aesthetic_predictor_v2_5.pth``, a state dict with keys
``scoring_head.0.weight`` ..., read with ``weights_only``; the encoder is the hub's google/siglip-so400m-patch14-384
(Apache-2.0). Range: ratings of 1 to 10; its authors call 5.5 and more great.

mps: the raw cosine, of the overall preference; the official score is exp(logit_scale), about 100, times it. Source:
github.com/Kwai-Kolors/MPS. Its own checkpoint is a pickled program and is refused; the hub's RE-N-Y/mpsv1
(``model.safetensors``) has the same weights as tensors alone. Tokenizer and preprocessing:
laion/CLIP-ViT-H-14-laion2B-s32B-b79K.

imagereward: s are five linear layers without activations; normalised to mean 0 and spread 1 over the training pictures, in
practice about -2.5 to 2; nothing bounds it. Source: github.com/THUDM/ImageReward and the hub's THUDM/ImageReward (Apache-2.0),
file ``ImageReward.pt``, with keys ``blip.visual_encoder.*``, ``blip.text_encoder.*`` and ``mlp.layers.*``, read with
``weights_only``; the tokenizer is bert-base-uncased's with [DEC] and [ENC] added. Preprocessing: shortest edge to 224
(bicubic), centre crop, as torchvision has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError, nearest
from tilting.features.once import loaded
from tilting.features.sources import Source, explained, find_file, find_folder
from tilting.rewards.check import Scorer
from tilting.rewards.clip_scores import Clip
from tilting.rewards.declaration import REWARDS, Argument, Reads

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.features.clip import ClipEmbedder
    from tilting.features.linear_head import LinearHead
    from tilting.features.siglip import SiglipEmbedder

FOLDER = Argument("FOLDER")
HEAD = Source(
    "aesthetic",
    "trl-lib/ddpo-aesthetic-predictor",
    ("sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.pth"),
    "https://github.com/christophschuhmann/improved-aesthetic-predictor",
    size="3.7 MB",
    licence="Apache-2.0",
)
VIT_L = Source("aesthetic", "openai/clip-vit-large-patch14", part="CLIP ViT-L/14", size="1.7 GB", licence="MIT")
HEAD_V2_5 = Source(
    "aesthetic-v2-5",
    "discus0434/aesthetic-predictor-v2-5",
    ("aesthetic_predictor_v2_5.pth",),
    "https://github.com/discus0434/aesthetic-predictor-v2-5",
    size="5 MB",
    licence="AGPL-3.0",
)
SIGLIP = Source("aesthetic-v2-5", "google/siglip-so400m-patch14-384", part="SigLIP", size="3.5 GB", licence="Apache-2.0")
MPS = Source("mps", "RE-N-Y/mpsv1", ("model.safetensors",), size="4 GB", licence="that of github.com/Kwai-Kolors/MPS")
PICKSCORE = Source("pickscore", "yuvalkirstain/PickScore_v1", size="3.9 GB", licence="MIT")
HPS_FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
BLIP = Source("imagereward", "THUDM/ImageReward", ("ImageReward.pt",), size="1.8 GB", licence="Apache-2.0")
BERT = Source(
    "imagereward", "google-bert/bert-base-uncased", ("vocab.txt",), part="tokenizer", size="0.2 MB", licence="Apache-2.0"
)
WORDS = ("tokenizer.json", "vocab.json")
"""A folder with one of these has CLIP's tokenizer."""


def laion(reward: str) -> Source:
    """Where the tokenizer and the preprocessing of a reward made from LAION's ViT-H-14 come from."""
    files = ("tokenizer.json, tokenizer_config.json and preprocessor_config.json",)
    return Source(reward, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", files, part="tokenizer", size="4 MB", licence="MIT")


def hps(version: str) -> Source:
    """Where the checkpoint of HPS v2 comes from."""
    return Source("hpsv2", "xswu/HPSv2", (HPS_FILES[version],), size="2 GB", licence="Apache-2.0")


@dataclass(frozen=True)
class Learned(Scorer):
    """r(x, c) = h(x, what is asked about c).

    Attributes:
        embedder: h, frozen: images (b, 3, h, w) in [0, 1] and b texts -> (b,).
        ask: the text that h reads, from a prompt.
    """

    embedder: Callable[[Tensor, list[str]], Tensor]
    name: str
    ask: Callable[[str], str] = str
    differentiable: bool = True

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.embedder(images, [self.ask(prompt) for prompt in prompts])


def named(reward: str, place: str | Path | None) -> str:
    """The spec of a reward whose weights lie there."""
    return reward if place is None else f"{reward}:{place}"


@dataclass(frozen=True)
class Aesthetic(Scorer):
    """r(x) = s(e(x) / |e(x)|); the prompt has no part in it.

    Attributes:
        embedder: the frozen CLIP or SigLIP.
        head: the frozen linear layers.
    """

    embedder: ClipEmbedder | SiglipEmbedder
    head: LinearHead
    name: str = "aesthetic"
    differentiable: bool = True

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.head(self.embedder.image(images))


@REWARDS.declare(
    "aesthetic",
    "how much people like it (LAION v2)",
    "rating, 1 to 10",
    differentiable=True,
    argument=FOLDER,
    reads=lambda folder: Reads(clip=VIT_L.repo),
    weights=True,
    sources=(HEAD, VIT_L),
)
def aesthetic(place: str | Path | None = None, clip: str | Path | None = None) -> Aesthetic:
    """LAION's aesthetic predictor.

    Args:
        place: its .pth file or a folder that has it; by default ``~/.cache/tilting/aesthetic``, then the hub.
        clip: a transformers CLIP of the width of the head, a folder or a name on the hub; by default the folder of the file
            if it is one, then openai/clip-vit-large-patch14.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a wrong or truncated checkpoint.
    """
    from tilting.features import checkpoints, linear_head
    from tilting.features.clip import ClipEmbedder

    path = find_file(HEAD, place)
    head = linear_head.read_head(checkpoints.read_state(path, "aesthetic"), path, "aesthetic")
    folder = find_folder(VIT_L, clip, beside=path.parent)
    with explained(VIT_L, folder):
        embedder = loaded(ClipEmbedder, folder)
    if embedder.dim != head.width:
        raise TiltingError(f"the CLIP {str(folder)!r} has embeddings of {embedder.dim}, 'aesthetic' needs {head.width}")
    return Aesthetic(embedder, head, named("aesthetic", place))


@REWARDS.declare(
    "aesthetic-v2-5",
    "how much people like it (v2.5, drawings too)",
    "rating, 1 to 10",
    differentiable=True,
    argument=FOLDER,
    weights=True,
    sources=(HEAD_V2_5, SIGLIP),
)
def aesthetic_v2_5(place: str | Path | None = None, encoder: str | Path | None = None) -> Aesthetic:
    """Aesthetic Predictor v2.5.

    Args:
        place: its .pth file or a folder that has it; by default ``~/.cache/tilting/aesthetic-v2-5``, then the hub.
        encoder: a transformers SigLIP of the width of the head, a folder or a name on the hub; by default the folder of the
            file if it is one, then google/siglip-so400m-patch14-384.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a wrong or truncated checkpoint.
    """
    from tilting.features import checkpoints, linear_head, siglip

    path = find_file(HEAD_V2_5, place)
    state = checkpoints.read_state(path, "aesthetic-v2-5")
    head = linear_head.read_head(state, path, "aesthetic-v2-5", "scoring_head.", linear_head.EVEN)
    folder = find_folder(SIGLIP, encoder, beside=path.parent)
    with explained(SIGLIP, folder):
        embedder = loaded(siglip.SiglipEmbedder, folder)
    if embedder.dim != head.width:
        told = f"{embedder.dim}, 'aesthetic-v2-5' needs {head.width}"
        raise TiltingError(f"the SigLIP {str(folder)!r} has embeddings of {told}")
    return Aesthetic(embedder, head, named("aesthetic-v2-5", place))


@REWARDS.declare(
    "pickscore",
    "how likely people pick it (PickScore v1)",
    "raw cosine",
    differentiable=True,
    argument=FOLDER,
    reads=lambda folder: Reads(clip=folder or PICKSCORE.repo),
    weights=True,
    sources=(PICKSCORE, laion("pickscore")),
)
def pickscore(folder: str | Path | None = None, processor: str | Path | None = None) -> Clip:
    """PickScore v1, as the raw cosine.

    Args:
        folder: a folder of its files, or a name on the hub; by default ``~/.cache/tilting/pickscore``, then the hub.
        processor: the folder or name with the tokenizer and preprocessor_config.json; by default the same folder if it has
            them, the user's cache, then laion's.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a folder whose weights are not all there.
    """
    from tilting.features.clip import ClipEmbedder, read_clip

    source, words = find_folder(PICKSCORE, folder), laion("pickscore")
    with explained(PICKSCORE, source):
        model = read_clip(source)
    beside = source if isinstance(source, Path) else None
    tokenizer = find_folder(words, processor, WORDS, beside)
    with explained(words, tokenizer, beside):
        embedder = ClipEmbedder(tokenizer, model=model)
    return Clip(embedder, named("pickscore", folder))


@REWARDS.declare(
    "hpsv2",
    "how likely people prefer it (HPS v2)",
    "raw cosine",
    differentiable=True,
    argument=FOLDER,
    weights=True,
    sources=(hps("2.0"), laion("hpsv2")),
)
def hpsv2(place: str | Path | None = None, processor: str | Path | None = None, version: str = "2.0") -> Clip:
    """HPS v2, as the raw cosine.

    Args:
        place: the .pt file or a folder that has it; by default ``~/.cache/tilting/hpsv2``, then the hub.
        processor: the folder or name with CLIP's tokenizer; by default the folder of the file if it has one, then laion's.
        version: "2.0" or "2.1", which file is looked for; a file that is named is what it is.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a wrong or truncated checkpoint.
    """
    from tilting.features import checkpoints, clip, open_clip, pixels

    if version not in HPS_FILES:
        raise TiltingError(f"there is no hpsv2 of version {version!r}{nearest(version, HPS_FILES)}")
    path = find_file(hps(version), place)
    model = open_clip.read_open_clip(checkpoints.read_state(path, "hpsv2"), path, "hpsv2")
    shape: Any = model.config
    side, words = shape.vision_config.image_size, laion("hpsv2")
    tokenizer = find_folder(words, processor, WORDS, path.parent)
    with explained(words, tokenizer):
        embedder = clip.ClipEmbedder(tokenizer, model=model, pixels=pixels.Pixels(side, side, fit="pad"))
    return Clip(embedder, named("hpsv2", place))


@REWARDS.declare(
    "imagereward",
    "how people rate it (ImageReward)",
    "spreads",
    differentiable=True,
    argument=FOLDER,
    weights=True,
    sources=(BLIP, BERT),
)
def imagereward(place: str | Path | None = None, words: str | Path | None = None) -> Learned:
    """ImageReward v1.0.

    Args:
        place: ImageReward.pt or a folder that has it; by default ``~/.cache/tilting/imagereward``, then the hub.
        words: the folder or name of bert-base-uncased's tokenizer; by default the folder of the file if it has one, the
            user's cache, then the hub.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a wrong or truncated checkpoint.
    """
    from tilting.features.blip import BlipScorer, read_parts, read_words

    path = find_file(BLIP, place)
    parts = read_parts(path)
    source = find_folder(BERT, words, ("vocab.txt", "tokenizer.json"), path.parent)
    with explained(BERT, source):
        tokenizer = read_words(source)
    return Learned(BlipScorer(*parts, tokenizer), named("imagereward", place))


@REWARDS.declare(
    "mps",
    "how people prefer it in many respects (MPS)",
    "raw cosine",
    differentiable=True,
    argument=FOLDER,
    weights=True,
    sources=(MPS, laion("mps")),
)
def mps(place: str | Path | None = None, processor: str | Path | None = None) -> Learned:
    """MPS of the overall preference, as the raw cosine.

    Args:
        place: its file of tensors or a folder that has it; by default ``~/.cache/tilting/mps``, then the hub.
        processor: the folder or name with CLIP's tokenizer; by default the folder of the file if it has one, then laion's.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a wrong or truncated checkpoint.
    """
    from tilting.features import checkpoints, mps

    path, words = find_file(MPS, place), laion("mps")
    eye, cross = mps.read_parts(checkpoints.read_state(path, "mps"), path)
    folder = find_folder(words, processor, WORDS, path.parent)
    with explained(words, folder):
        tokenizer = checkpoints.tokenizer_of(folder, "CLIP")
    return Learned(mps.MpsScorer(eye, cross, tokenizer), named("mps", place))
