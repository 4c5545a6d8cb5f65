"""Pipelines of many families with a few thousand random weights, built from diffusers' own classes, and what their calls are
told beside prompts and steps. float32, CPU, no network.
"""

from __future__ import annotations

import types
import warnings

import diffusers
import numpy as np
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from PIL import Image

from support import today

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type']=='text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}</s>{% endfor %}"
)
SMALL = {"height": 16, "width": 16}
NEGATIVE = {"negative_prompt": "a bad owl"}
BLOCKS = {"norm_num_groups": 4, "layers_per_block": 1, "block_out_channels": (8, 16)}
CROSS = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}


def letters(length=512):
    """A tokenizer of bytes, with a chat template."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {c: i + 4 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    model = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=length, chat_template=CHAT, **special)


def scrambled(network, seed=7, scale=0.08):
    """A network without gates of zero or constant outputs: seeded, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim >= 2:
                p.copy_(torch.randn(p.shape, generator=generator) * (0.7 / p.shape[1:].numel() ** 0.5))
            else:
                base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                p.copy_(base + scale * torch.randn(p.shape, generator=generator))
    return network.eval()


def picture(side=16, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def mask(side=16):
    """White, to be drawn, on the right."""
    pixels = np.zeros((side, side), dtype=np.uint8)
    pixels[:, side // 2 :] = 255
    return Image.fromarray(pixels)


def t5(width=32):
    torch.manual_seed(5)
    config = transformers.T5Config(d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=300)
    return transformers.T5EncoderModel(config).eval()


def llm(kind, config, **more):
    """A language model of a few units."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512, **more}
    return getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()


# -- Stable Diffusion 1 and 2


def ddim(kind="DDIMScheduler", **more):
    own = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if kind in ("DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"):
        own |= {"timestep_spacing": "leading", "steps_offset": 1}
    if kind == "DDIMScheduler":
        own |= {"clip_sample": False, "set_alpha_to_one": False}
    return getattr(diffusers, kind)(**{**own, **more})


def unet(channels=4, cross=12, **more):
    torch.manual_seed(0)
    own = {"sample_size": 8, "in_channels": channels, "out_channels": 4, "cross_attention_dim": cross}
    return scrambled(diffusers.UNet2DConditionModel(**own, **BLOCKS, **CROSS, attention_head_dim=2, **more))


def sd(kind="StableDiffusionPipeline", scheduler=None, channels=4, network=None, **more):
    own = {"vae": today.vae(4), "text_encoder": today.clip(12), "tokenizer": today.words()}
    own |= {"unet": network or unet(channels), "scheduler": scheduler or ddim(), "safety_checker": None}
    own |= {"feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, kind)(**{**own, **more})


def controlnet(**more):
    own = {"in_channels": 4, "conditioning_channels": 3, "conditioning_embedding_out_channels": (4, 8), **BLOCKS}
    own |= {"down_block_types": CROSS["down_block_types"], "cross_attention_dim": 12, "attention_head_dim": 2, **more}
    torch.manual_seed(3)
    return scrambled(diffusers.ControlNetModel(**own), 3)


def image_encoder(dim=12):
    torch.manual_seed(4)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(image_size=16, patch_size=4, projection_dim=dim, **sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = transformers.CLIPImageProcessor(crop_size=16, size=16)
    return transformers.CLIPVisionModelWithProjection(config).eval(), processor


def ip_adapter(network, cross=12):
    """An IP-Adapter's weights for a network, as its files have them."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    own, number = {}, 1
    for name in network.attn_processors:
        if name.endswith("attn2.processor"):
            width = dict(network.named_modules())[name.removesuffix(".processor")].to_k.out_features
            own |= {f"{number}.to_k_ip.weight": normal(width, cross), f"{number}.to_v_ip.weight": normal(width, cross)}
            number += 2
    image = {"proj.weight": normal(4 * cross, 12), "proj.bias": torch.zeros(4 * cross)}
    image |= {"norm.weight": torch.ones(cross), "norm.bias": torch.zeros(cross)}
    return {"image_proj": image, "ip_adapter": own}


def sd15():
    return sd(), {"guidance_scale": 4.0}


def sd21():
    return sd(scheduler=ddim(prediction_type="v_prediction")), {"guidance_scale": 4.0, **NEGATIVE}


def sd15_euler():
    return sd(scheduler=ddim("EulerDiscreteScheduler")), {"guidance_scale": 4.0}


def sd15_euler_karras():
    scheduler = ddim("EulerDiscreteScheduler", use_karras_sigmas=True)
    return sd(scheduler=scheduler), {"guidance_scale": 4.0}


def sd15_dpm():
    return sd(scheduler=ddim("DPMSolverMultistepScheduler")), {"guidance_scale": 4.0}


def sd15_unipc():
    return sd(scheduler=ddim("UniPCMultistepScheduler")), {"guidance_scale": 4.0}


def sd15_lcm():
    return sd(scheduler=ddim("LCMScheduler")), {"guidance_scale": 1.5}


def sd15_pag():
    """Perturbed attention alone: a second branch that is not of the scale."""
    return sd("StableDiffusionPAGPipeline", pag_applied_layers="mid"), {"guidance_scale": 1.0, "pag_scale": 2.0}


def lcm():
    pipe = sd("LatentConsistencyModelPipeline", ddim("LCMScheduler"), network=unet(time_cond_proj_dim=8))
    return pipe, {"guidance_scale": 4.0}


def sd15_img2img():
    return sd("StableDiffusionImg2ImgPipeline"), {"guidance_scale": 4.0, "image": picture(), "strength": 0.6}


def sd15_img2img_euler():
    pipe = sd("StableDiffusionImg2ImgPipeline", ddim("EulerDiscreteScheduler"))
    return pipe, {"guidance_scale": 4.0, "image": picture(), "strength": 0.6}


def sd15_inpaint9():
    told = {"guidance_scale": 4.0, "image": picture(), "mask_image": mask(), **SMALL}
    return sd("StableDiffusionInpaintPipeline", channels=9), told


def sd15_inpaint4():
    return sd("StableDiffusionInpaintPipeline"), {"guidance_scale": 4.0, "image": picture(), "mask_image": mask(), **SMALL}


def sd15_inpaint4_dpm():
    pipe = sd("StableDiffusionInpaintPipeline")
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe, sd15_inpaint4()[1]


def sd15_controlnet():
    pipe = sd("StableDiffusionControlNetPipeline", controlnet=controlnet())
    told = {"image": picture(), "controlnet_conditioning_scale": 0.8, "control_guidance_end": 0.7}
    return pipe, {"guidance_scale": 4.0, **told}


def sd15_ip():
    encoder, processor = image_encoder(12)
    pipe = sd(image_encoder=encoder, feature_extractor=processor)
    pipe.unet._load_ip_adapter_weights([ip_adapter(pipe.unet)], low_cpu_mem_usage=False)
    pipe.set_ip_adapter_scale(0.7)
    return pipe, {"guidance_scale": 4.0, "ip_adapter_image": picture(16, 2)}


def sd15_t2i_adapter():
    torch.manual_seed(2)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    sizes = {"sample_size": 8, "cross_attention_dim": 12, "attention_head_dim": 2}
    network = scrambled(diffusers.UNet2DConditionModel(**sizes, **BLOCKS, **blocks))
    adapter = diffusers.T2IAdapter(in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2)
    pipe = sd("StableDiffusionAdapterPipeline", network=network, adapter=scrambled(adapter))
    return pipe, {"guidance_scale": 4.0, "image": picture(), "adapter_conditioning_scale": 0.9}


# -- Stable Diffusion XL


def xl(kind="StableDiffusionXLPipeline", scheduler="DDIMScheduler", **more):
    own = today.sdxl(scheduler)
    scrambled(own.unet)
    parts = {name: part for name, part in own.components.items() if name not in ("image_encoder", "feature_extractor")}
    return getattr(diffusers, kind)(**parts, add_watermarker=False, **more)


def sdxl():
    return xl(), {"guidance_scale": 5.0}


def sdxl_euler():
    return xl(scheduler="EulerDiscreteScheduler"), {"guidance_scale": 5.0}


def sdxl_rescale():
    return xl(), {"guidance_scale": 5.0, "guidance_rescale": 0.7}


def sdxl_img2img():
    return xl("StableDiffusionXLImg2ImgPipeline"), {"guidance_scale": 5.0, "image": picture(), "strength": 0.6, **NEGATIVE}


def sdxl_inpaint():
    told = {"image": picture(), "mask_image": mask(), "strength": 0.99}
    return xl("StableDiffusionXLInpaintPipeline"), {"guidance_scale": 5.0, **told, **SMALL}


def sdxl_controlnet():
    sizes = {"cross_attention_dim": 28, "attention_head_dim": (2, 4), "use_linear_projection": True}
    sizes |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "transformer_layers_per_block": (1, 1)}
    part = controlnet(projection_class_embeddings_input_dim=6 * 4 + 10, **sizes)
    pipe = xl("StableDiffusionXLControlNetPipeline", controlnet=part)
    return pipe, {"guidance_scale": 5.0, "image": picture(), "controlnet_conditioning_scale": 0.8}


def refiner():
    """SDXL's second model: one text encoder, an aesthetic score in place of a size."""
    own = xl("StableDiffusionXLImg2ImgPipeline")
    parts = {name: part for name, part in own.components.items() if name not in ("image_encoder", "feature_extractor")}
    sizes = {"attention_head_dim": (2, 4), "use_linear_projection": True, "addition_embed_type": "text_time"}
    sizes |= {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 5 * 4 + 10}
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=16, **BLOCKS, **CROSS, **sizes
    )
    parts |= {"unet": scrambled(network), "text_encoder": None, "tokenizer": None}
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)
    return pipe, {"guidance_scale": 5.0, "image": picture(), "strength": 0.5}


def kolors():
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    torch.manual_seed(0)
    sizes = {"num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 16, "num_attention_heads": 2, "kv_channels": 8}
    config = ChatGLMConfig(
        padded_vocab_size=300, seq_length=64, multi_query_group_num=2, add_qkv_bias=True, original_rope=True, **sizes
    )
    config.multi_query_attention = True
    own = xl()
    words = letters(64)

    def tokenizer(text, padding=None, max_length=None, truncation=None, return_tensors=None):
        found = words(list(text), padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
        found["position_ids"] = (found["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return found

    more = {"attention_head_dim": (2, 4), "use_linear_projection": True, "addition_embed_type": "text_time"}
    more |= {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + 16}
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=16, **BLOCKS, **CROSS, **more
    )
    pipe = diffusers.KolorsPipeline(
        vae=own.vae, text_encoder=ChatGLMModel(config).eval(), tokenizer=None, unet=scrambled(network), scheduler=ddim()
    )
    pipe.tokenizer = tokenizer
    return pipe, {"guidance_scale": 5.0, "max_sequence_length": 32}


# -- flow matching


def flow(**more):
    return diffusers.FlowMatchEulerDiscreteScheduler(**more)


def shifted(**more):
    shift = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}
    return flow(use_dynamic_shifting=True, shift_terminal=0.02, **shift, **more)


def sd3():
    pipe = today.sd3()
    scrambled(pipe.transformer)
    return pipe, {"guidance_scale": 5.0}


def sd3_inpaint():
    kind, (pipe, told) = diffusers.StableDiffusion3InpaintPipeline, sd3()
    return kind(**pipe.components), {**told, "strength": 0.6, "image": picture(), "mask_image": mask()}


def sd3_controlnet():
    pipe, told = sd3()
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 16, "num_layers": 1, "attention_head_dim": 8}
    sizes |= {"num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16}
    part = diffusers.SD3ControlNetModel(**sizes, pooled_projection_dim=22, out_channels=16, pos_embed_max_size=8)
    parts = {name: part for name, part in pipe.components.items() if name not in ("image_encoder", "feature_extractor")}
    made = diffusers.StableDiffusion3ControlNetPipeline(**parts, controlnet=scrambled(part, 3))
    return made, {**told, "control_image": picture(), "controlnet_conditioning_scale": 0.8, **SMALL}


def flux_parts(distilled=True, **sizes):
    pipe = today.flux(distilled)
    network = pipe.transformer
    if sizes:
        torch.manual_seed(0)
        own = {k: v for k, v in network.config.items() if not k.startswith("_")}
        network = diffusers.FluxTransformer2DModel(**{**own, **sizes})
    parts = {name: part for name, part in pipe.components.items() if name not in ("image_encoder", "feature_extractor")}
    return {**parts, "transformer": scrambled(network)}


def flux():
    return diffusers.FluxPipeline(**flux_parts()), {"guidance_scale": 3.5, **SMALL}


def schnell():
    return diffusers.FluxPipeline(**flux_parts(False)), {"guidance_scale": 0.0, "max_sequence_length": 64, **SMALL}


def flux_true():
    return diffusers.FluxPipeline(**flux_parts()), {"guidance_scale": 3.5, "true_cfg_scale": 3.0, **NEGATIVE, **SMALL}


def kontext():
    told = {"guidance_scale": 3.5, "image": picture(), "max_area": 16 * 16, "_auto_resize": False, **SMALL}
    return diffusers.FluxKontextPipeline(**flux_parts()), told


def flux_fill():
    parts = flux_parts(in_channels=64 + 64 + 4 * 4, out_channels=64)
    return diffusers.FluxFillPipeline(**parts), {"guidance_scale": 3.5, "image": picture(), "mask_image": mask(), **SMALL}


def flux_controlnet():
    parts = flux_parts()
    keys = ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "pooled_projection_dim")
    sizes = {key: parts["transformer"].config[key] for key in keys}
    sizes |= {"guidance_embeds": True, "axes_dims_rope": (4, 4, 8), "num_layers": 1, "num_single_layers": 1}
    part = scrambled(diffusers.FluxControlNetModel(**sizes), 3)
    told = {"guidance_scale": 3.5, "control_image": picture(), "controlnet_conditioning_scale": 0.7}
    return diffusers.FluxControlNetPipeline(**parts, controlnet=part), {**told, **SMALL}


def chroma():
    torch.manual_seed(0)
    sizes = {"in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    sizes |= {"joint_attention_dim": 32, "axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8}
    network = diffusers.ChromaTransformer2DModel(**sizes, approximator_hidden_dim=16, approximator_layers=1)
    encoder, tokens = today.t5(32)
    parts = {"vae": today.vae(16, 0.11), "text_encoder": encoder, "tokenizer": tokens, "transformer": scrambled(network)}
    told = {"guidance_scale": 4.0, "max_sequence_length": 32, **NEGATIVE, **SMALL}
    return diffusers.ChromaPipeline(scheduler=flow(shift=3.0), **parts), told


def flux2(**more):
    torch.manual_seed(0)
    sizes = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    sizes |= {"num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": [4, 4, 4, 4]}
    network = diffusers.Flux2Transformer2DModel(**sizes, timestep_guidance_channels=256, guidance_embeds=False)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    blocks |= {"block_out_channels": (4, 4), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 1}
    vae = diffusers.AutoencoderKLFlux2(
        sample_size=16, in_channels=3, out_channels=3, use_quant_conv=False, use_post_quant_conv=False, **blocks
    )
    parts = {"vae": vae.eval(), "text_encoder": llm("Qwen3ForCausalLM", "Qwen3Config"), "tokenizer": letters()}
    pipe = diffusers.Flux2KleinPipeline(scheduler=shifted(), transformer=scrambled(network), is_distilled=False, **parts)
    return pipe, {"guidance_scale": 4.0, "max_sequence_length": 64, "text_encoder_out_layers": (1,), **SMALL, **more}


def flux2_edit():
    return flux2(image=picture(64))


def pixart():
    pipe = today.pixart()
    scrambled(pipe.transformer)
    return pipe, {"guidance_scale": 4.5, "use_resolution_binning": False, **SMALL}


# -- Qwen's and others with language models


def qwen_text(width=16):
    torch.manual_seed(0)
    section = [1, 1, 2] if width == 16 else [2, 2, 4]
    text = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "vocab_size": 300, "rope_theta": 1e6}
    text |= {"rope_scaling": {"mrope_section": section, "rope_type": "default", "type": "default"}}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    tokens = {"vision_end_token_id": 3, "vision_start_token_id": 2, "vision_token_id": 1}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, hidden_size=width, vocab_size=300, **tokens)
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen_vae():
    torch.manual_seed(1)
    numbers = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.2, 0.9, 1.1, 0.8]}
    sizes = {"base_dim": 24, "z_dim": 4, "dim_mult": [1, 2, 4], "num_res_blocks": 1}
    return diffusers.AutoencoderKLQwenImage(**sizes, temperal_downsample=[False, True], **numbers).eval()


def qwen_parts():
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16}
    sizes |= {"num_attention_heads": 3, "joint_attention_dim": 16, "axes_dims_rope": (8, 4, 4)}
    network = diffusers.QwenImageTransformer2DModel(**sizes, guidance_embeds=False)
    parts = {"scheduler": shifted(), "vae": qwen_vae(), "text_encoder": qwen_text(), "tokenizer": letters()}
    return {**parts, "transformer": scrambled(network)}


QWEN = {"true_cfg_scale": 4.0, "max_sequence_length": 400, **NEGATIVE}


def qwen():
    return diffusers.QwenImagePipeline(**qwen_parts()), {**QWEN, **SMALL}


def qwen_controlnet():
    parts = qwen_parts()
    config = {k: v for k, v in parts["transformer"].config.items() if k not in ("guidance_embeds",)}
    part = diffusers.QwenImageControlNetModel.from_config({**config, "num_layers": 1})
    pipe = diffusers.QwenImageControlNetPipeline(**parts, controlnet=scrambled(part, 3))
    return pipe, {**QWEN, **SMALL, "control_image": picture(), "controlnet_conditioning_scale": 0.8}


class QwenProcessor:
    """Text and pictures -> what Qwen2.5-VL is told, with a vocabulary of bytes: a picture's token is 5."""

    def __init__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = {"min_pixels": 28 * 28, "max_pixels": 28 * 28}
            self.image_processor = transformers.Qwen2VLImageProcessor(patch_size=14, merge_size=2, **pixels)
        self.tokenizer = letters()

    def __call__(self, text=None, images=None, padding=True, return_tensors="pt"):
        found = self.image_processor(images=images, return_tensors="pt")
        plain = [one.replace("<|vision_start|><|image_pad|><|vision_end|>", "") for one in text]
        told, grid = self.tokenizer(plain, padding=True, return_tensors="pt"), found["image_grid_thw"]
        count = sum(int(g.prod()) // 4 for g in grid) if len(text) == 1 else int(grid[0].prod()) // 4
        ids = torch.tensor([[2, *[5] * count, 3]]).expand(len(text), -1)
        seen = torch.ones(len(text), count + 2, dtype=torch.long)
        copies = 1 if len(text) in (1, len(grid)) else len(text) // len(grid)
        values = {"pixel_values": found["pixel_values"].repeat(copies, 1), "image_grid_thw": grid.repeat(copies, 1)}
        values["input_ids"] = torch.cat([ids, told["input_ids"]], 1)
        values["attention_mask"] = torch.cat([seen, told["attention_mask"]], 1)
        return transformers.BatchFeature(values)


def qwen_edit(kind="QwenImageEditPipeline"):
    import importlib

    parts = qwen_parts()
    for config in (parts["text_encoder"].config, parts["text_encoder"].model.config):
        config.image_token_id = 5
    pipe = getattr(diffusers, kind)(**parts, processor=None)
    pipe.processor = QwenProcessor()
    home = importlib.import_module(type(pipe).__module__)
    home.calculate_dimensions = lambda area, ratio: (32, 32, None)  # else a megapixel, whatever is asked
    return pipe, {**QWEN, "image": picture(32), "height": 32, "width": 32}


def qwen_edit_plus():
    pipe, told = qwen_edit("QwenImageEditPlusPipeline")
    import importlib

    home = importlib.import_module(type(pipe).__module__)
    home.calculate_dimensions = lambda area, ratio: (32, 32)
    return pipe, {**told, "image": [picture(32)]}


def z_image():
    torch.manual_seed(0)
    sizes = {"all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 32, "n_layers": 2, "n_heads": 2}
    sizes |= {"n_refiner_layers": 1, "n_kv_heads": 2, "norm_eps": 1e-5, "qk_norm": True, "cap_feat_dim": 16}
    sizes |= {"rope_theta": 256.0, "t_scale": 1000.0, "axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32]}
    parts = {"vae": today.vae(16, 0.11), "text_encoder": llm("Qwen3Model", "Qwen3Config", num_hidden_layers=3)}
    network = scrambled(diffusers.ZImageTransformer2DModel(**sizes))
    pipe = diffusers.ZImagePipeline(scheduler=flow(shift=3.0), tokenizer=letters(), transformer=network, **parts)
    return pipe, {"guidance_scale": 3.0, "max_sequence_length": 100, **NEGATIVE, **SMALL}


def krea2():
    torch.manual_seed(0)
    sizes = {"in_channels": 16, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 32, "timestep_embed_dim": 8, "text_hidden_dim": 16, "num_text_layers": 3}
    sizes |= {"text_num_attention_heads": 2, "text_num_key_value_heads": 1, "text_intermediate_size": 16}
    sizes |= {"num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 2, 2), "rope_theta": 1e3}
    network = scrambled(diffusers.Krea2Transformer2DModel(**sizes))
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    encoder = transformers.Qwen3VLModel(
        transformers.Qwen3VLConfig(text_config=text, vision_config=vision, vocab_size=300)
    ).eval()
    parts = {"scheduler": shifted(), "vae": qwen_vae(), "text_encoder": encoder, "tokenizer": letters()}
    pipe = diffusers.Krea2Pipeline(**parts, transformer=network, text_encoder_select_layers=(0, 1, 2))
    return pipe, {"guidance_scale": 3.0, "max_sequence_length": 400, **NEGATIVE, **SMALL}


def hunyuan_image(momentum=None):
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 1}
    sizes |= {"num_single_layers": 1, "num_refiner_layers": 1, "patch_size": (1, 1), "guidance_embeds": False}
    sizes |= {"text_embed_dim": 32, "text_embed_2_dim": 32, "rope_axes_dim": (4, 4)}
    network = scrambled(diffusers.HunyuanImageTransformer2DModel(**sizes))
    blocks = {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1, "spatial_compression_ratio": 8}
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, scaling_factor=0.476986, sample_size=128, **blocks
    )
    guiders = [
        diffusers.AdaptiveProjectedMixGuidance(
            adaptive_projected_guidance_start_step=n, adaptive_projected_guidance_momentum=momentum
        )
        for n in (2, 3)
    ]
    parts = {"text_encoder": qwen_text(32), "tokenizer": letters(), "text_encoder_2": t5(), "tokenizer_2": letters()}
    pipe = diffusers.HunyuanImagePipeline(
        scheduler=flow(shift=7.0), vae=vae.eval(), transformer=network, guider=guiders[0], ocr_guider=guiders[1], **parts
    )
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 400, 32
    return pipe, {"height": 64, "width": 64}


def sana(scheduler=None):
    torch.manual_seed(0)
    sizes = {"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_attention_heads": 2}
    sizes |= {"attention_head_dim": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 4}
    sizes |= {"cross_attention_dim": 8, "caption_channels": 8, "sample_size": 32}
    network = scrambled(diffusers.SanaTransformer2DModel(**sizes))
    blocks = ("ResBlock", "EfficientViTBlock")
    own = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("block_types", blocks),
            ("block_out_channels", (8, 8)),
            ("qkv_multiscales", ((), (5,))),
            ("layers_per_block", (1, 1)),
        )
    }
    kinds = {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
    kinds |= {"decoder_norm_types": "rms_norm", "decoder_act_fns": "silu", "scaling_factor": 0.41407}
    vae = diffusers.AutoencoderDC(in_channels=3, latent_channels=4, attention_head_dim=2, **own, **kinds).eval()
    text = {"head_dim": 16, "hidden_size": 8, "intermediate_size": 64, "num_hidden_layers": 1, "attn_implementation": "eager"}
    parts = {"tokenizer": letters(), "text_encoder": llm("Gemma2Model", "Gemma2Config", **text), "vae": vae}
    pipe = diffusers.SanaPipeline(transformer=network, scheduler=scheduler or flow(shift=3.0), **parts)
    told = {"max_sequence_length": 16, "complex_human_instruction": None, "use_resolution_binning": False}
    return pipe, {"guidance_scale": 4.5, "height": 32, "width": 32, **told}


def sana_dpm():
    own = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    return sana(diffusers.DPMSolverMultistepScheduler(**own))


def lumina2():
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 1, "num_refiner_layers": 1}
    sizes |= {"num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2, "axes_dim_rope": (4, 2, 2), "cap_feat_dim": 8}
    network = scrambled(diffusers.Lumina2Transformer2DModel(**sizes, axes_lens=(300, 64, 64)))
    text = {"head_dim": 4, "hidden_size": 8, "intermediate_size": 8}
    parts = {"text_encoder": llm("Gemma2Model", "Gemma2Config", **text), "tokenizer": letters(), "vae": today.vae(4, 0.1)}
    pipe = diffusers.Lumina2Pipeline(transformer=network, scheduler=flow(shift=2.0), **parts)
    return pipe, {"guidance_scale": 4.0, "max_sequence_length": 250, **NEGATIVE, **SMALL}


def cogview4():
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 4, "num_attention_heads": 4}
    sizes |= {"out_channels": 4, "text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4}
    network = scrambled(diffusers.CogView4Transformer2DModel(**sizes))
    text = llm("GlmModel", "GlmConfig", num_key_value_heads=1, head_dim=8, pad_token_id=0, eos_token_id=2)
    parts = {"tokenizer": letters(), "text_encoder": text, "vae": today.vae(4), "transformer": network}
    scheduler = flow(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return diffusers.CogView4Pipeline(scheduler=scheduler, **parts), {
        "guidance_scale": 4.0,
        "max_sequence_length": 32,
        **NEGATIVE,
        **SMALL,
    }


def aura_flow():
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1}
    sizes |= {"attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 32}
    network = scrambled(diffusers.AuraFlowTransformer2DModel(**sizes, out_channels=4, pos_embed_max_size=64))
    text = transformers.UMT5Config(d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=300)
    parts = {"tokenizer": letters(), "text_encoder": transformers.UMT5EncoderModel(text).eval(), "vae": today.vae(4)}
    pipe = diffusers.AuraFlowPipeline(transformer=network, scheduler=flow(shift=1.73), **parts)
    return pipe, {"guidance_scale": 3.5, "max_sequence_length": 32, **NEGATIVE, **SMALL}


def hidream():
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1}
    sizes |= {"attention_head_dim": 8, "num_attention_heads": 4, "caption_channels": [32, 16], "text_emb_dim": 22}
    sizes |= {"num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (4, 2, 2), "max_resolution": (32, 32)}
    network = scrambled(diffusers.HiDreamImageTransformer2DModel(**sizes, llama_layers=(0, 1)))
    encoder, tokens = today.t5(32)
    parts = {"text_encoder": today.clip(12, 10, seed=1), "tokenizer": today.words()}
    parts |= {"text_encoder_2": today.clip(16, 12, seed=2), "tokenizer_2": today.words()}
    parts |= {"text_encoder_3": encoder, "tokenizer_3": tokens, "tokenizer_4": letters()}
    llama = llm("LlamaForCausalLM", "LlamaConfig")
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=flow(shift=3.0), vae=today.vae(4, 0.1), text_encoder_4=llama, transformer=network, **parts
    )
    pipe.default_sample_size = 8  # whose area a picture's is brought to
    return pipe, {"guidance_scale": 5.0, "max_sequence_length": 24, **NEGATIVE, **SMALL}


# -- video


def unipc():
    own = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return diffusers.UniPCMultistepScheduler(**own)


def wan_net(seed=7, channels=16, **more):
    torch.manual_seed(0)
    sizes = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": channels}
    sizes |= {"out_channels": 16, "text_dim": 32, "freq_dim": 256, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True}
    return scrambled(
        diffusers.WanTransformer3DModel(**sizes, qk_norm="rms_norm_across_heads", rope_max_seq_len=32, **more), seed
    )


def wan_parts(scheduler=None):
    torch.manual_seed(1)
    sizes = {"base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    vae = diffusers.AutoencoderKLWan(**sizes, temperal_downsample=[False, True, True]).eval()
    return {"tokenizer": letters(), "text_encoder": t5(), "vae": vae, "scheduler": scheduler or unipc()}


VIDEO = {"guidance_scale": 5.0, "num_frames": 5, "max_sequence_length": 16, **NEGATIVE, **SMALL}


def with_ftfy(home):
    """What some pipelines cannot be without, in their module."""
    if not hasattr(home, "ftfy"):
        home.ftfy = types.SimpleNamespace(fix_text=lambda text: text)


def wan():
    return diffusers.WanPipeline(transformer=wan_net(), **wan_parts()), dict(VIDEO)


def wan22():
    """Two experts, each with its scale."""
    parts = {"transformer": wan_net(), "transformer_2": wan_net(9), "boundary_ratio": 0.875}
    return diffusers.WanPipeline(**parts, **wan_parts()), {**VIDEO, "guidance_scale_2": 3.0}


def wan_i2v():
    import diffusers.pipelines.wan.pipeline_wan_i2v as home

    with_ftfy(home)
    encoder, processor = image_encoder(12)
    parts = {"image_encoder": encoder, "image_processor": processor, "transformer": wan_net(channels=36, image_dim=16)}
    return diffusers.WanImageToVideoPipeline(**parts, **wan_parts(flow(shift=3.0))), {**VIDEO, "image": picture()}


def wan_vace():
    """Its call takes one text, and no list of one."""
    import diffusers.pipelines.wan.pipeline_wan_vace as home

    with_ftfy(home)
    torch.manual_seed(0)
    sizes = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "num_layers": 3}
    sizes |= {"out_channels": 16, "text_dim": 32, "freq_dim": 256, "ffn_dim": 32, "cross_attn_norm": True}
    sizes |= {"qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32, "vace_layers": [0, 2], "vace_in_channels": 96}
    pipe = diffusers.WanVACEPipeline(transformer=scrambled(diffusers.WanVACETransformer3DModel(**sizes)), **wan_parts())
    return pipe, {**VIDEO, "video": [picture(16, i) for i in range(5)], "mask": [mask() for _ in range(5)]}


def ltx():
    torch.manual_seed(0)
    sizes = {"in_channels": 8, "out_channels": 8, "patch_size": 1, "patch_size_t": 1, "num_attention_heads": 4}
    sizes |= {"attention_head_dim": 8, "cross_attention_dim": 32, "num_layers": 1, "caption_channels": 32}
    network = scrambled(diffusers.LTXVideoTransformer3DModel(**sizes))
    scaling = (True, True, False, False)
    blocks = {"block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
    blocks |= {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5, "decoder_inject_noise": (False,) * 5}
    blocks |= {"spatio_temporal_scaling": scaling, "decoder_spatio_temporal_scaling": scaling}
    blocks |= {"upsample_residual": (False,) * 4, "upsample_factor": (1,) * 4, "timestep_conditioning": False}
    more = {"patch_size": 1, "patch_size_t": 1, "encoder_causal": True, "decoder_causal": False}
    vae = diffusers.AutoencoderKLLTXVideo(in_channels=3, out_channels=3, latent_channels=8, **blocks, **more).eval()
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    parts = {"scheduler": shifted(), "vae": vae, "text_encoder": t5(), "tokenizer": letters()}
    return diffusers.LTXPipeline(**parts, transformer=network), {**VIDEO, "guidance_scale": 3.0, "height": 32, "width": 32}


def ltx_condition():
    """Its step is told the times of each token, and the output's opposite."""
    pipe, told = ltx()
    parts = {**pipe.components, "scheduler": flow()}
    return diffusers.LTXConditionPipeline(**parts), {**told, "image": picture(32), "image_cond_noise_scale": 0.0}


def hunyuan_video():
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1}
    sizes |= {"num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "guidance_embeds": True}
    sizes |= {"text_embed_dim": 16, "pooled_projection_dim": 12, "rope_axes_dim": (2, 4, 4)}
    network = scrambled(diffusers.HunyuanVideoTransformer3DModel(**sizes))
    blocks = {"down_block_types": ("HunyuanVideoDownBlock3D",) * 4, "up_block_types": ("HunyuanVideoUpBlock3D",) * 4}
    blocks |= {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "scaling_factor": 0.476986}
    blocks |= {"spatial_compression_ratio": 8, "temporal_compression_ratio": 4, "mid_block_add_attention": True}
    vae = diffusers.AutoencoderKLHunyuanVideo(in_channels=3, out_channels=3, latent_channels=4, **blocks).eval()
    parts = {"text_encoder": llm("LlamaModel", "LlamaConfig"), "tokenizer": letters()}
    clip = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip |= {"vocab_size": 1771, "bos_token_id": 1769, "eos_token_id": 1770, "pad_token_id": 1770}
    encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(max_position_embeddings=77, **clip)).eval()
    parts |= {"text_encoder_2": encoder, "tokenizer_2": today.words(), "vae": vae}
    told = {"guidance_scale": 6.0, "true_cfg_scale": 2.0, "num_frames": 5, "max_sequence_length": 16, **NEGATIVE, **SMALL}
    told |= {"prompt_template": {"template": "{}", "crop_start": 0}}
    return diffusers.HunyuanVideoPipeline(scheduler=flow(shift=7.0), transformer=network, **parts), told


def cogvideox():
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "time_embed_dim": 2}
    sizes |= {"text_embed_dim": 32, "num_layers": 1, "sample_width": 2, "sample_height": 2, "sample_frames": 9}
    sizes |= {"patch_size": 2, "temporal_compression_ratio": 4, "max_text_seq_length": 16}
    network = scrambled(diffusers.CogVideoXTransformer3DModel(**sizes))
    blocks = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
    blocks |= {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2}
    vae = diffusers.AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, latent_channels=4, temporal_compression_ratio=4, **blocks
    ).eval()
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", snr_shift_scale=3.0
    )
    parts = {"tokenizer": letters(), "text_encoder": t5(), "vae": vae, "transformer": network, "scheduler": scheduler}
    return diffusers.CogVideoXPipeline(**parts), {**VIDEO, "guidance_scale": 6.0, "num_frames": 9}


# -- without words


def dit():
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    sizes |= {"in_channels": 4, "out_channels": 8, "attention_bias": True, "activation_fn": "gelu-approximate"}
    sizes |= {"num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero", "norm_elementwise_affine": False}
    network = scrambled(diffusers.DiTTransformer2DModel(**sizes))
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(transformer=network, vae=today.vae(4), scheduler=scheduler), {"guidance_scale": 4.0}


def ddpm():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    network = diffusers.UNet2DModel(sample_size=8, in_channels=3, out_channels=3, attention_head_dim=4, **BLOCKS, **blocks)
    return diffusers.DDPMPipeline(unet=scrambled(network), scheduler=diffusers.DDPMScheduler()), {}


MAKERS = {
    made.__name__: made
    for made in (
        *(sd15, sd21, sd15_euler, sd15_euler_karras, sd15_dpm, sd15_unipc, sd15_lcm, lcm, sd15_pag),
        *(sd15_img2img, sd15_img2img_euler),
        *(sd15_inpaint9, sd15_inpaint4, sd15_inpaint4_dpm, sd15_controlnet, sd15_ip, sd15_t2i_adapter),
        *(sdxl, sdxl_euler, sdxl_rescale, sdxl_img2img, sdxl_inpaint, sdxl_controlnet, refiner, kolors),
        *(
            sd3,
            sd3_inpaint,
            sd3_controlnet,
            flux,
            schnell,
            flux_true,
            kontext,
            flux_fill,
            flux_controlnet,
            chroma,
            flux2,
            flux2_edit,
            pixart,
        ),
        *(qwen, qwen_controlnet, qwen_edit, qwen_edit_plus, z_image, krea2, hunyuan_image, sana, sana_dpm, lumina2, cogview4),
        *(aura_flow, hidream, wan, wan22, wan_i2v, ltx, ltx_condition, hunyuan_video, cogvideox, dit, ddpm),
    )
}


def make(name):
    """A pipeline and what its call is told. Raises AttributeError where the installed libraries have no such classes."""
    diffusers_logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    pipe, told = MAKERS[name]()
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe, told
