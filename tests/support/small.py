"""A Stable Diffusion of a few thousand random weights, with pocket's text encoder: for tests of what holds of any weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from tilting.models.words import POCKET


def write_small(folder: Path) -> Path:
    """A diffusers folder of 16 x 16 images, latents 4 x 8 x 8."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder.mkdir(parents=True)
    for name in ("scheduler", "text_encoder", "tokenizer", "model_index.json"):
        (shutil.copytree if (POCKET / name).is_dir() else shutil.copy)(POCKET / name, folder / name)
    width = json.loads((POCKET / "text_encoder" / "config.json").read_text())["hidden_size"]
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=width,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        scaling_factor=1.0,
    ).save_pretrained(folder / "vae")
    return folder


def bright_fit(model, label="bright", seed=0, channels=(0, 1, 2)):
    """Is an image brighter than the model's usual ones, in these channels? Fitted to its own images, made brighter or darker by
    up to .15."""
    import tilting as tl

    images = tl.generate(model, ["a fox", "a cat"], steps=3, images=40, cfg=2.0, batch_size=80).images
    torch.manual_seed(seed)
    shift = 0.3 * torch.rand(len(images), 1, 1, 1) - 0.15
    words = ["yes" if value > 0 else "no" for value in shift.flatten()]
    shift = shift * torch.tensor([c in channels for c in range(3)])[:, None, None]
    options = {"epochs": 12, "batch_size": 16, "lr": 0.02, "seed": seed}
    return tl.condition_fit((images + shift).clamp(0, 1), words, label, kind="cnn", widths=(4, 4, 8), **options)


def random_control(model, classifiers, place="latent", seed=0, size=0.05, sha256=None):
    """A control that was never trained: random LoRA and embedding."""
    from tilting.conditioning.trainer import make_control_trainer

    run = make_control_trainer(model, classifiers, ["a fox"], place=place, rank=2, steps=2, batch_size=2, seed=seed)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for p in run.state.parameters.values():
            p.copy_(size * torch.randn_like(p))
    return run.control({"name": model.name, "sha256": sha256})
