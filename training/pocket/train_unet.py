"""The denoiser and its text encoder, trained together on a bank of latents; v-prediction, zero terminal SNR.

loss = min(snr + 1, 5) / (snr + 1) · |v - v'|²: weight 1 at and near x_T (min-SNR-5 as published gives x_T itself weight
0, which a zero-terminal-SNR schedule cannot afford) and less where the noise is small.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from common import save, train
from data import ASSETS, WORK, Batch, Drawings, prompts_of, write_words
from tokenizer import LENGTH
from tokenizer import build as build_tokenizer

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 12000
BATCH, LATE, VIEWS = 48, (800, 80), 32  # larger batches late: from step 800 on, 80


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def build_unet() -> UNet2DConditionModel:
    """Besides cross-attention the pooled prompt scales and shifts every block: which drawing it is, is a global fact."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        layers_per_block=1,
        block_out_channels=(96, 176),
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=160,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=160,
            intermediate_size=480,
            projection_dim=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def latent_bank(vae: AutoencoderKL, drawings: Drawings) -> dict[str, torch.Tensor]:
    """VIEWS pictures of every known drawing, encoded once: latents fp16 and their labels."""
    path = WORK / "bank.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    rows = {"z": [], "sprite": [], "background": []}
    gen = torch.Generator().manual_seed(77)
    for _ in range(VIEWS):
        for sprite in torch.randperm(drawings.known, generator=gen).split(96):
            background = drawings.backgrounds(sprite, gen, drawings.trained, white=0.3)
            images = drawings.compose(sprite, background, gen).images
            with torch.no_grad():
                z = vae.encode(images * 2 - 1).latent_dist.mean * vae.config.scaling_factor
            rows["z"].append(z.half())
            rows["sprite"].append(sprite)
            rows["background"].append(background)
    bank = {k: torch.cat(v) for k, v in rows.items()}
    save(path, bank)
    return bank


def write_pipeline(unet, text_encoder, folder: Path) -> None:
    """Save fp16 weights in the diffusers layout; the text encoder's config says float32, which plain loading obeys."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    vae = AutoencoderKL.from_pretrained(folder / "vae").half()
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    config = folder / "vae" / "config.json"  # not where it was trained
    config.write_text("".join(x for x in config.read_text().splitlines(True) if "_name_or_path" not in x))


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    folder = ASSETS / "pocket"
    drawings = Drawings(write_words(folder))
    tokenizer = build_tokenizer(folder / "tokenizer")
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    unet, text_encoder = build_unet().to(memory_format=torch.channels_last), build_text_encoder(tokenizer)
    unet.set_attn_processor(AttnProcessor())  # on a CPU and 64 tokens faster than the fused kernel
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    if STEPS == 0:  # an untrained pipeline, to build on while this trains
        return write_pipeline(unet, text_encoder, folder)
    bank = latent_bank(vae, drawings)
    n = len(bank["z"])
    alpha_bar = build_scheduler().alphas_cumprod
    weight = (1 / (1 - alpha_bar)).clamp(max=5) * (1 - alpha_bar)  # snr + 1 = 1 / (1 - ᾱ)

    def loss_of(step: int):
        gen = torch.Generator().manual_seed(5_000_011 + step)
        size = BATCH if step < LATE[0] else LATE[1]
        i = torch.randint(n, (size,), generator=gen)
        x0 = bank["z"][i].float()
        sprite, background = bank["sprite"][i], bank["background"][i]
        labels = Batch(x0, sprite, drawings.concept[sprite], drawings.style[sprite], background)
        prompts = prompts_of(labels, drawings, gen)
        ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        t = (torch.arange(size) * 1000 // size + torch.randint(1000, (1,), generator=gen)) % 1000  # stratified
        noise = torch.randn(x0.shape, generator=gen)
        a, s = alpha_bar[t].sqrt()[:, None, None, None], (1 - alpha_bar[t]).sqrt()[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            context = text_encoder(ids).last_hidden_state
            v = unet((a * x0 + s * noise).contiguous(memory_format=torch.channels_last), t, context).sample.float()
        error = (v - (a * noise - s * x0)).square().mean((1, 2, 3))
        return (weight[t] * error).mean(), {"mse": error.mean().item()}

    train(both, loss_of, WORK / "unet.pt", STEPS, peak=3e-3, ema=0.9985, every=200)
    write_pipeline(unet, text_encoder, folder)


if __name__ == "__main__":
    main()
