"""Rewards by vision-language models on this machine. (`vlm` asks a server.)

    hpsv3           r(x, c) = μ(h_<|Reward|>)                                  Qwen2-VL with a head (Ma et al. 2025)
    unifiedreward   r(x, c) = Σ_k p(k) (k + p(. | k) Σ_d p(d | k.) d / 10)     Qwen2-VL or 2.5 that rates (Wang et al. 2025)
    vqascore        r(x, c) = p("Yes" | x, 'Does this figure show "c"? ...')   CLIP-FlanT5 (Lin et al. 2024)

hpsv3: the mean of the normal distribution that the published network predicts; unbounded, in practice about -5 to 15. Source:
github.com/MizzenAI/HPSv3 and the hub's MizzenAI/HPSv3 (MIT), ``HPSv3.safetensors``, with config, tokenizer and preprocessing of
Qwen/Qwen2-VL-7B-Instruct (Apache-2.0). Every picture is resized to about 448 x 448 of its own shape. As in the published code,
picture tokens have the positions of words. It resizes in two steps of the same size, this in one.

unifiedreward: a mean rating in [1, 5]. The published code reads what the model writes behind "Final Score:"; this takes the
mean over what it may write (the rating and its first decimal), which has a gradient and is the same where the model is sure.
Source: github.com/CodeGoat24/UnifiedReward and the hub's CodeGoat24/UnifiedReward-qwen-7b (MIT), or any Qwen2-VL or
Qwen2.5-VL folder; the question is the one Flow-GRPO asks (github.com/yifan123/flow_grpo, MIT).

vqascore: in [0, 1]; with the labels of the published code, "Yes" and the end of the answer: exp of their mean log-probability.
Source: github.com/linzhiqiu/t2v_metrics and the hub's zhiqiulin/clip-flant5-xl (Apache-2.0; -xxl, 11B, is the paper's best),
with openai/clip-vit-large-patch14-336 (the layer before the last, without [CLS]). Pictures are padded to squares in its mean.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tilting.features.packaged import question
from tilting.features.sources import Source, explained, find_file, find_folder
from tilting.rewards.declaration import REWARDS, Reads
from tilting.rewards.preferences import FOLDER, Learned, named

HPSV3 = Source("hpsv3", "MizzenAI/HPSv3", ("HPSv3.safetensors",), size="17 GB", licence="MIT")
QWEN_FILES = ("config.json, tokenizer.json, tokenizer_config.json and preprocessor_config.json",)
QWEN = Source("hpsv3", "Qwen/Qwen2-VL-7B-Instruct", QWEN_FILES, part="processor", size="11 MB", licence="Apache-2.0")
UNIFIED = Source("unifiedreward", "CodeGoat24/UnifiedReward-qwen-7b", size="17 GB", licence="MIT")
FLAN = Source("vqascore", "zhiqiulin/clip-flant5-xl", size="6.3 GB", licence="Apache-2.0")
TOWER = Source("vqascore", "openai/clip-vit-large-patch14-336", part="CLIP ViT-L/14-336", size="1.7 GB", licence="MIT")
ASKED = 'Does this figure show "{prompt}"? Please answer yes or no.'


@REWARDS.declare(
    "hpsv3",
    "how people would rate it (HPSv3)",
    "score, about -5 to 15",
    differentiable=True,
    argument=FOLDER,
    weights=True,
    sources=(HPSV3, QWEN),
)
def hpsv3(place: str | Path | None = None, processor: str | Path | None = None) -> Learned:
    """HPSv3.

    Args:
        place: HPSv3.safetensors or a folder that has it; by default ``~/.cache/tilting/hpsv3``, then the hub.
        processor: the folder or name with the config, tokenizer and preprocessing of Qwen2-VL-7B-Instruct; by default the
            folder of the file if it has them, the user's cache, then the hub.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a wrong or truncated checkpoint.
    """
    from tilting.features import checkpoints, qwen

    path = find_file(HPSV3, place)
    source = find_folder(QWEN, processor, ("preprocessor_config.json",), path.parent)
    state = checkpoints.read_state(path, "hpsv3")
    with explained(QWEN, source, path.parent):
        return Learned(qwen.read_hpsv3(state, path, source), named("hpsv3", place), partial(question, "hpsv3"))


@REWARDS.declare(
    "unifiedreward",
    "how UnifiedReward rates it",
    "rating, 1 to 5",
    differentiable=True,
    argument=FOLDER,
    weights=True,
    sources=(UNIFIED,),
)
def unifiedreward(folder: str | Path | None = None) -> Learned:
    """UnifiedReward, of a picture alone.

    Args:
        folder: of a Qwen2-VL or Qwen2.5-VL, or a name on the hub; by default ``~/.cache/tilting/unifiedreward``, then the hub.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or another model.
    """
    from tilting.features.qwen import RatingScorer

    source = find_folder(UNIFIED, folder)
    with explained(UNIFIED, source):
        return Learned(RatingScorer(source), named("unifiedreward", folder), partial(question, "unifiedreward"))


@REWARDS.declare(
    "vqascore",
    "whether it shows the prompt (CLIP-FlanT5)",
    "probability",
    differentiable=True,
    argument=FOLDER,
    reads=lambda folder: Reads(clip=TOWER.repo),
    weights=True,
    sources=(FLAN, TOWER),
)
def vqascore(folder: str | Path | None = None, tower: str | Path | None = None) -> Learned:
    """VQAScore of CLIP-FlanT5.

    Args:
        folder: of a CLIP-FlanT5, or a name on the hub; by default ``~/.cache/tilting/vqascore``, then the hub.
        tower: of its CLIP image encoder, or a name on the hub; by default the folder ``tower`` beside or inside, then the hub.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or a folder that is no CLIP-FlanT5.
    """
    from tilting.features.clip_t5 import ClipT5

    source = find_folder(FLAN, folder)
    beside = Path(source) / "tower" if isinstance(source, Path) else None
    with explained(FLAN, source):
        reader = ClipT5(source)
    eye = find_folder(TOWER, tower, beside=beside)
    with explained(TOWER, eye, beside):
        return Learned(reader.look_through(eye), named("vqascore", folder), lambda prompt: ASKED.replace("{prompt}", prompt))
