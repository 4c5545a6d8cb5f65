"""What a reward costs beside its network: scoring a batch against the bare forward of the same weights, interleaved.

    python benchmarks/rewards.py        prints the median ratios; the promise is <= 1.1

The bare side is fed a tensor that is resized and normalised already and gives embeddings of as many images (and, for clip,
nothing of the prompts, which are embedded once and kept). `aesthetic` is CLIP ViT-L/14 at its full width with random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tilting as tl
from tilting.features.clip import ClipEmbedder
from tilting.features.linear_head import LinearHead
from tilting.features.packaged import POCKET_CLIP
from tilting.features.pixels import Pixels
from tilting.rewards import Aesthetic
from tilting.types import Reward


def vit_l14() -> Aesthetic:
    """The aesthetic predictor's shape: CLIP ViT-L/14 and its head, random; a text tower of one layer, which is not asked."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
    }
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=768)).eval()
    return Aesthetic(ClipEmbedder(POCKET_CLIP, model=model, pixels=Pixels(224, 224)), LinearHead().requires_grad_(False))


def forward(embedder: ClipEmbedder, images: Tensor) -> Callable[[], Tensor]:
    """The bare forward of an embedder's image tower on images that are preprocessed beforehand."""
    model: Any = embedder.model
    pixels = embedder.preprocess(images)
    return lambda: model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


def ratio(reward: Reward, bare: Callable[[], Tensor], images: Tensor, rounds: int) -> dict[str, float]:
    """Medians over rounds of scoring and of the bare forward, in turn, the first of a pair alternating."""
    prompts = ["a fox"] * len(images)
    sides = (lambda: reward(images, prompts), bare)
    for side in sides:
        side()
    seconds: tuple[list[float], list[float]] = ([], [])
    for r in range(rounds):
        for which in (0, 1) if r % 2 else (1, 0):
            begun = time.perf_counter()
            sides[which]()
            seconds[which].append(time.perf_counter() - begun)
    score, forward = (statistics.median(s) for s in seconds)
    paired = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    return {"ratio": round(paired, 4), "score_s": round(score, 5), "forward_s": round(forward, 5)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="of the images for clip and style")
    parser.add_argument("--large-batch", type=int, default=4, help="of 512 x 512 images for aesthetic; 0 leaves it out")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    images, out = torch.rand(options.batch, 3, options.size, options.size), {}
    for reward in (tl.rewards.clip(), tl.rewards.style("noto")):
        out[reward.name] = ratio(reward, forward(reward.embedder, images), images, options.rounds)
    if options.large_batch:
        reward, images = vit_l14(), torch.rand(options.large_batch, 3, 512, 512)
        out["aesthetic"] = ratio(reward, forward(reward.embedder, images), images, max(3, options.rounds // 7))
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
