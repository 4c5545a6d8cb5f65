"""Folders of the shapes of real models, configurations and tokenizers without weights, and what scores their pictures.

    folder = write("sd15", Path("shapes/sd15"))        sd15, sdxl, sd35, flux, wan

Tokenizers are pocket's, of fewer words than the real ones: text is what they are told apart by, and costs next to nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tilting.features.packaged import POCKET

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64, "feed_forward_proj": "gated-gelu"}
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    **BLOCKS,
}
DEEP = {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
}
DDIM = ("DDIMScheduler", {**BETAS, "steps_offset": 1})

SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {
        "class": "StableDiffusionPipeline",
        "unet": ("UNet2DConditionModel", {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}),
        "vae": {**VAE, "scaling_factor": 0.18215, "sample_size": 512},
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "scheduler": DDIM,
    },
    "sdxl": {
        "class": "StableDiffusionXLPipeline",
        "unet": (
            "UNet2DConditionModel",
            {
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "transformer_layers_per_block": [1, 2, 10],
                "attention_head_dim": [5, 10, 20],
                "cross_attention_dim": 2048,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
                "use_linear_projection": True,
                "sample_size": 128,
            },
        ),
        "vae": {**VAE, "scaling_factor": 0.13025, "sample_size": 1024},
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
        "scheduler": DDIM,
    },
    "sd35": {
        "class": "StableDiffusion3Pipeline",
        "transformer": (
            "SD3Transformer2DModel",
            {
                "sample_size": 128,
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 16,
                "num_layers": 24,
                "attention_head_dim": 64,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 384,
                "dual_attention_layers": list(range(13)),
                "qk_norm": "rms_norm",
            },
        ),
        "vae": {**DEEP, "scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024},
        "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
        "text_encoder_3": ("T5EncoderModel", T5_XXL),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    },
    "flux": {
        "class": "FluxPipeline",
        "transformer": ("FluxTransformer2DModel", {"guidance_embeds": True}),
        "vae": {**DEEP, "scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024},
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "text_encoder_2": ("T5EncoderModel", T5_XXL),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}),
    },
    "wan": {
        "class": "WanPipeline",
        "transformer": ("WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
        "vae": ("AutoencoderKLWan", {}),
        "text_encoder": ("UMT5EncoderModel", T5_XXL),
        "scheduler": (
            "UniPCMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
    },
}


def write(name: str, folder: Path, pixels: int | None = None) -> Path:
    """The folder of a shape: model_index.json, configurations and tokenizers; no weights.

    Args:
        name: of `SHAPES`.
        folder: to write.
        pixels: of a side; default the model's own.
    """
    import diffusers
    import transformers

    shape = dict(SHAPES[name])
    index: dict[str, Any] = {"_class_name": shape.pop("class"), "_diffusers_version": diffusers.__version__}
    for part, said in shape.items():
        kind, config = said if isinstance(said, tuple) else ("AutoencoderKL", said)
        config = dict(config)
        if pixels is not None and "sample_size" in config:
            config["sample_size"] = pixels if part == "vae" else pixels // 8
        library = "transformers" if part.startswith("text") else "diffusers"
        index[part] = [library, kind]
        place = folder / part
        place.mkdir(parents=True, exist_ok=True)
        if part == "scheduler":
            getattr(diffusers, kind)(**config).save_pretrained(place)
        elif library == "diffusers":
            (place / "config.json").write_text(json.dumps({"_class_name": kind, **config}))
        else:
            config |= (
                {"vocab_size": 49408, "max_position_embeddings": 77}
                if "CLIP" in kind
                else {"vocab_size": 256384 if kind.startswith("U") else 32128}
            )
            config |= {"projection_dim": config["hidden_size"]} if "CLIP" in kind else {}
            config |= {"bos_token_id": 1769, "eos_token_id": 1770, "pad_token_id": 1770} if "CLIP" in kind else {}
            getattr(transformers, kind).config_class(**config).save_pretrained(place)
            words = f"tokenizer{part.removeprefix('text_encoder')}"
            tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(POCKET / "tokenizer", model_max_length=77)
            if "T5" in kind:
                vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
                tokenizer = transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)
            tokenizer.save_pretrained(folder / words)
            index[words] = [
                "transformers",
                type(tokenizer).__name__.replace("Fast", "") if "T5" not in kind else "T5TokenizerFast",
            ]
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]} if name == "sd15" else {}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


def write_tiny_decoder(folder: Path, channels: int) -> Path:
    """The configuration of TAESD, whose defaults are AutoencoderTiny's, for latents of so many channels."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny", "latent_channels": channels}))
    return folder


class Aesthetic(torch.nn.Module):
    """A reward of the aesthetic score's shape: CLIP ViT-L/14 reads 224 x 224 pixels, and a small head its vector."""

    name, differentiable = "aesthetic", True

    def __init__(self, small: bool = False):
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        size = {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        }
        if small:
            size = {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": 56,
            }
        self.clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**size, image_size=224, projection_dim=768))
        self.head = torch.nn.Linear(768, 1)
        self.eval().requires_grad_(False)

    def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        pixels = torch.nn.functional.interpolate(images, (224, 224), mode="bicubic", antialias=True)
        return self.head(self.clip(pixel_values=pixels.to(self.head.weight.dtype)).image_embeds)[:, 0].float()
