"""Pipelines of the newer families with a few thousand random weights: for tests of what holds of any weights."""

from __future__ import annotations

from pathlib import Path

import torch

from tilting.models.words import POCKET

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip(width, projection=None, seed=0):
    """A CLIP text encoder of pocket's vocabulary, projecting its pooled vector to a width if asked."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=1771,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=1769,
        eos_token_id=1770,
        pad_token_id=1770,
        projection_dim=projection or width,
        initializer_factor=4.0,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def words():
    """pocket's tokenizer."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(POCKET / "tokenizer")


def t5(width):
    """A T5 encoder and its tokenizer, a token a letter."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    torch.manual_seed(5)
    config = T5Config(vocab_size=len(vocabulary), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval(), T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def vae(channels, shift=None):
    """An autoencoder of 16 x 16 images and latents of 8 x 8."""
    from diffusers import AutoencoderKL

    torch.manual_seed(6)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        scaling_factor=0.7,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )


def beta_schedule(kind):
    """SDXL's and PixArt's noise, in a scheduler of a class."""
    more = {"clip_sample": False, "set_alpha_to_one": False} if kind.__name__ == "DDIMScheduler" else {}
    return kind(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1, **more
    )


def sdxl(scheduler="DDIMScheduler"):
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=28,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 4 + 10,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae(4),
        clip(12, seed=1),
        clip(16, 10, seed=2),
        words(),
        words(),
        unet,
        beta_schedule(getattr(diffusers, scheduler)),
        add_watermarker=False,
    )


def sd3(with_t5=True, **schedule):
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=22,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    encoder, tokens = t5(32) if with_t5 else (None, None)
    return StableDiffusion3Pipeline(
        network,
        FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | schedule)),
        vae(16, 0.06),
        clip(12, 10, seed=1),
        words(),
        clip(16, 12, seed=2),
        words(),
        encoder,
        tokens,
    )


def flux(distilled=True):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    network = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=distilled,
    )
    shift = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15} if distilled else {"shift": 1.0}
    encoder, tokens = t5(32)
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(**shift), vae(16, 0.11), clip(12), words(), encoder, tokens, network)


def pixart():
    from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    torch.manual_seed(0)
    network = PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=32,
        use_additional_conditions=False,
    )
    encoder, tokens = t5(32)
    return PixArtSigmaPipeline(tokens, encoder, vae(4), network, beta_schedule(DDIMScheduler))


MAKERS = {"sdxl": sdxl, "sd3": sd3, "flux": flux, "schnell": lambda: flux(False), "pixart": pixart}


def write(name: str, folder: Path) -> Path:
    """A family's folder, as a hub would hold it."""
    if not folder.exists():
        MAKERS[name]().save_pretrained(folder)
    return folder


TOLD = {
    "flux": {"height": 16, "width": 16},
    "schnell": {"height": 16, "width": 16, "max_sequence_length": 256},
    "pixart": {"use_resolution_binning": False, "clean_caption": False},
}
"""What the calls of these tiny ones are told beside: sizes that their folders do not say."""
