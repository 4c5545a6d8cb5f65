"""Small random-weight networks of the published architectures, saved in the published files' format and key names."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MethodType

import torch
from torch import Tensor, nn

from tilting.features.packaged import question
from tilting.rewards import (
    aesthetic,
    aesthetic_v2_5,
    classify,
    detect,
    geneval,
    hpsv2,
    hpsv3,
    imagereward,
    mps,
    pickscore,
    unifiedreward,
    vqascore,
)
from tilting.types import Reward

NAMES = ("aesthetic", "pickscore", "hpsv2", "imagereward", "detect", "classify", "aesthetic-v2-5", "mps")
NAMES += ("hpsv3", "unifiedreward", "vqascore", "geneval", "geneval-strict")
MERGES = [("f", "o"), ("fo", "x</w>"), ("o", "w"), ("ow", "l</w>"), ("c", "a"), ("ca", "t</w>"), ("a", "n</w>")]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "an", "the", "fox", "owl", "cat", "##s", "on", "red", "grapes", ","]
SPREAD = {"weight": 1.3, "bias": 0.3}


def byte_letters() -> list[str]:
    """The printable letter of each byte in CLIP's vocabulary, in its order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in shown] + [chr(256 + n) for n in range(256 - len(shown))]


def clip_vocabulary() -> dict[str, int]:
    """Letters, letters that end a word, merged pieces, and the two marks: the order of CLIP's own."""
    letters = byte_letters()
    pieces = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in MERGES), "<|startoftext|>", "<|endoftext|>"]
    return {piece: k for k, piece in enumerate(pieces)}


def save_clip_tokenizer(folder: Path, pad: str = "<|endoftext|>", length: int = 77) -> int:
    """vocab.json, merges.txt and tokenizer_config.json; returns the number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    words = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(words)


def save_processor(folder: Path, kind: str, size: dict[str, int], **fields: object) -> None:
    """preprocessor_config.json with CLIP's mean and spread."""
    usual = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    does = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 3}
    config = usual | does | {"image_processor_type": kind, "size": size} | fields
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


def random(shape: tuple[int, ...], key: str, rng: torch.Generator) -> Tensor:
    """A weight that makes mistakes visible: no layer is small, no bias 0, no norm 1."""
    noise = torch.randn(shape, generator=rng)
    if len(shape) > 1:
        return noise * SPREAD["weight"] / torch.Size(shape[1:]).numel() ** 0.5 if "embed" not in key else noise * 0.5
    return noise * SPREAD["bias"] + (1.0 if key.endswith("weight") else 0.0)


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter at random, in place."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(random(p.shape, key, rng))
    return model.eval()


def save_clip(folder: Path, side: int = 32, act: str = "quick_gelu", seed: int = 0, dim: int = 24) -> Path:
    """A transformers CLIPModel folder with its tokenizer and processor."""
    from transformers import CLIPConfig, CLIPModel

    count = save_clip_tokenizer(folder)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": act}
    text = shape | {"vocab_size": count, "bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    vision = shape | {"image_size": side, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim))
    shake(model, seed).save_pretrained(folder)
    crop = {"height": side, "width": side}
    save_processor(folder, "CLIPImageProcessor", {"shortest_edge": side}, do_center_crop=True, crop_size=crop)
    return folder


def head_state(width: int, prefix: str = "layers.", seed: int = 1) -> dict[str, Tensor]:
    """The five linear layers with the published widths behind the first."""
    rng, widths = torch.Generator().manual_seed(seed), (width, 1024, 128, 64, 16, 1)
    state = {}
    for k, place in enumerate((0, 2, 4, 6, 7)):
        state[f"{prefix}{place}.weight"] = torch.randn(widths[k + 1], widths[k], generator=rng) / widths[k] ** 0.5
        state[f"{prefix}{place}.bias"] = torch.randn(widths[k + 1], generator=rng)
    return state


def save_aesthetic(folder: Path) -> Path:
    """sac+logos+ava1-l14-linearMSE.pth beside its CLIP."""
    save_clip(folder)
    torch.save(head_state(24), folder / "sac+logos+ava1-l14-linearMSE.pth")
    return folder


def open_clip_state(side: int = 28, seed: int = 2) -> dict[str, Tensor]:
    """A ViT-H-14 of open_clip, two layers deep, two heads wide (80 and 64), in half precision as published."""
    rng, words, dim = torch.Generator().manual_seed(seed), len(clip_vocabulary()), 24
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, 128),
        "text_projection": (128, dim),
        "visual.class_embedding": (160,),
        "visual.positional_embedding": ((side // 14) ** 2 + 1, 160),
        "visual.proj": (160, dim),
        "visual.conv1.weight": (160, 3, 14, 14),
        "token_embedding.weight": (words, 128),
        "logit_scale": (),
    }
    for place, width in (("visual.ln_pre", 160), ("visual.ln_post", 160), ("ln_final", 128)):
        shapes |= {f"{place}.weight": (width,), f"{place}.bias": (width,)}
    for tower, width in (("visual.transformer", 160), ("transformer", 128)):
        for n in range(2):
            at = f"{tower}.resblocks.{n}"
            parts = {
                "attn.in_proj_": (3 * width, width),
                "attn.out_proj.": (width, width),
                "mlp.c_fc.": (2 * width, width),
                "mlp.c_proj.": (width, 2 * width),
                "ln_1.": (width,),
                "ln_2.": (width,),
            }
            for part, shape in parts.items():
                shapes |= {f"{at}.{part}weight": shape, f"{at}.{part}bias": shape[:1]}
    return {key: random(torch.Size(shape), key, rng).half() for key, shape in shapes.items()}


def save_hpsv2(folder: Path) -> Path:
    """HPS_v2_compressed.pt beside CLIP's tokenizer."""
    save_clip_tokenizer(folder)
    torch.save({"state_dict": open_clip_state()}, folder / "HPS_v2_compressed.pt")
    return folder


def blip_state(side: int = 32, seed: int = 3) -> dict[str, Tensor]:
    """ImageReward.pt with two layers and two heads of 64 in either tower, and the keys its score does not use."""
    rng, wide, width, words = torch.Generator().manual_seed(seed), 192, 128, len(BERT) + 2
    shapes: dict[str, tuple[int, ...]] = {
        "visual_encoder.cls_token": (1, 1, wide),
        "visual_encoder.pos_embed": (1, (side // 16) ** 2 + 1, wide),
        "text_encoder.embeddings.word_embeddings.weight": (words, width),
        "text_encoder.embeddings.position_embeddings.weight": (512, width),
    }

    def add(place: str, *shape: int) -> None:
        shapes.update({f"{place}.weight": shape, f"{place}.bias": shape[:1]})

    add("visual_encoder.patch_embed.proj", wide, 3, 16, 16)
    add("visual_encoder.norm", wide)
    for n in range(2):
        at = f"visual_encoder.blocks.{n}"
        for norm in ("norm1", "norm2"):
            add(f"{at}.{norm}", wide)
        add(f"{at}.attn.qkv", 3 * wide, wide)
        add(f"{at}.attn.proj", wide, wide)
        add(f"{at}.mlp.fc1", 2 * wide, wide)
        add(f"{at}.mlp.fc2", wide, 2 * wide)
    add("text_encoder.embeddings.LayerNorm", width)
    for n in range(2):
        at = f"text_encoder.encoder.layer.{n}"
        for kind, seen in (("attention", width), ("crossattention", wide)):
            add(f"{at}.{kind}.self.query", width, width)
            add(f"{at}.{kind}.self.key", width, seen)
            add(f"{at}.{kind}.self.value", width, seen)
            add(f"{at}.{kind}.output.dense", width, width)
            add(f"{at}.{kind}.output.LayerNorm", width)
        add(f"{at}.intermediate.dense", 2 * width, width)
        add(f"{at}.output.dense", width, 2 * width)
        add(f"{at}.output.LayerNorm", width)
    add("vision_proj", 8, wide)
    add("text_proj", 8, width)
    state = {f"blip.{key}": random(torch.Size(shape), key, rng) for key, shape in shapes.items()}
    for key in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        state[f"blip.visual_encoder.{key}"] *= 0.02  # so small that the eps of the first norm counts
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    return state | head_state(width, "mlp.layers.", seed + 1)


def save_imagereward(folder: Path) -> Path:
    """ImageReward.pt beside BERT's vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(blip_state(), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(BERT) + "\n")
    return folder


def save_owlvit(folder: Path, side: int = 48) -> Path:
    """A transformers OwlViTForObjectDetection folder with its tokenizer (padded with "!") and processor."""
    from transformers import OwlViTConfig, OwlViTForObjectDetection

    count = save_clip_tokenizer(folder, pad="!", length=16)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shape | {"vocab_size": count, "bos_token_id": count - 2, "eos_token_id": count - 1, "max_position_embeddings": 16}
    config = OwlViTConfig(text_config=text, vision_config=shape | {"image_size": side, "patch_size": 16}, projection_dim=32)
    shake(OwlViTForObjectDetection(config), 5).save_pretrained(folder)
    save_processor(folder, "OwlViTImageProcessor", {"height": side, "width": side}, do_center_crop=False)
    return folder


def save_classifier(folder: Path, side: int = 32) -> Path:
    """A transformers ViTForImageClassification folder of four labels with its processor (bilinear, to a square)."""
    from transformers import ViTConfig, ViTForImageClassification

    folder.mkdir(parents=True, exist_ok=True)
    labels = dict(enumerate(["tabby, tabby cat", "owl", "red fox, Vulpes vulpes", "drawing"]))
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=8,
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
    )
    shake(ViTForImageClassification(config), 6).save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    save_processor(folder, "ViTImageProcessor", {"height": side, "width": side}, resample=2, image_mean=half, image_std=half)
    return folder


MARKED = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
QWEN_MARKS = [f"<|{mark}|>" for mark in MARKED]


@cache
def letters_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-pair vocabulary of the questions that are asked, so that they are not thousands of letters, and its merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    words.pre_tokenizer = pre_tokenizers.Sequence(parts)
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=byte_letters(), show_progress=False)
    words.train_from_iterator([question("hpsv3", ""), question("unifiedreward", "")], trainer)
    told = json.loads(words.to_str())["model"]
    return told["vocab"], [tuple(merge) for merge in told["merges"]]


def qwen(seed: int = 7, more: int = 0) -> nn.Module:
    """A Qwen2-VL of two layers in either tower that can read; ``more`` rows of its table are no tokenizer's yet."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    first = len(letters_and_merges()[0])
    marks = {mark: first + k for k, mark in enumerate(QWEN_MARKS)}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {
        "num_key_value_heads": 1,
        "vocab_size": first + len(marks) + more,
        "max_position_embeddings": 4096,
        "rope_parameters": rope,
    }
    text |= {"bos_token_id": first, "eos_token_id": first + 2, "pad_token_id": first}
    vision = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    ids = {f"{name}_token_id": marks[f"<|{name}_pad|>"] for name in ("image", "video")}
    ids |= {f"vision_{end}_token_id": marks[f"<|vision_{end}|>"] for end in ("start", "end")}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    return shake(Qwen2VLForConditionalGeneration(config), seed)


def save_qwen_processor(folder: Path, pixels: tuple[int, int] = (784, 3136)) -> None:
    """Qwen2's tokenizer, and the preprocessing of Qwen2-VL."""
    folder.mkdir(parents=True, exist_ok=True)
    words, merges = letters_and_merges()
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    config = {"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": QWEN_MARKS, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "do_convert_rgb": True}
    size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}
    save_processor(folder, "Qwen2VLImageProcessor", size, **patches)


def save_unifiedreward(folder: Path) -> Path:
    """A transformers Qwen2-VL folder with its processor."""
    save_qwen_processor(folder)
    qwen().save_pretrained(folder)
    return folder


def hpsv3_state(seed: int = 8) -> dict[str, Tensor]:
    """HPSv3.safetensors, with the names that transformers 4.45 gave."""
    rng, state = torch.Generator().manual_seed(seed), {}
    for key, value in qwen(seed, more=1).state_dict().items():
        state[key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")] = value
    for place, (inside, outside) in {0: (32, 1024), 3: (1024, 16), 5: (16, 2)}.items():
        state[f"rm_head.{place}.weight"] = torch.randn(outside, inside, generator=rng) / inside**0.5
        state[f"rm_head.{place}.bias"] = torch.randn(outside, generator=rng)
    return state


def save_hpsv3(folder: Path) -> Path:
    """HPSv3.safetensors beside the config and the processor of its Qwen2-VL."""
    from safetensors.torch import save_file

    save_qwen_processor(folder)
    qwen().config.save_pretrained(folder)
    save_file({key: value.contiguous() for key, value in hpsv3_state().items()}, folder / "HPSv3.safetensors")
    return folder


def save_siglip(folder: Path, side: int = 32) -> Path:
    """A transformers SiglipModel folder with its processor."""
    from transformers import SiglipConfig, SiglipModel

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(text_config=shape | {"vocab_size": 16}, vision_config=shape | {"image_size": side, "patch_size": 8})
    shake(SiglipModel(config), 9).save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    save_processor(folder, "SiglipImageProcessor", {"height": side, "width": side}, image_mean=half, image_std=half)
    return folder


def save_aesthetic_v2_5(folder: Path) -> Path:
    """aesthetic_predictor_v2_5.pth beside its SigLIP."""
    save_siglip(folder)
    state = head_state(32, "scoring_head.", 10)
    torch.save({key.replace(".7.", ".8."): value for key, value in state.items()}, folder / "aesthetic_predictor_v2_5.pth")
    return folder


def mps_state(side: int = 28, seed: int = 11) -> dict[str, Tensor]:
    """A checkpoint of MPS, two layers deep in each part, with the buffers that some hold."""
    from transformers import CLIPConfig, CLIPModel

    rng, words, dim = torch.Generator().manual_seed(seed), len(clip_vocabulary()), 24
    shape = {"num_hidden_layers": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    text = shape | {"hidden_size": 128, "intermediate_size": 160, "num_attention_heads": 2, "vocab_size": words}
    text |= {"bos_token_id": words - 2, "eos_token_id": 2, "pad_token_id": words - 1}
    vision = shape | {"hidden_size": 160, "intermediate_size": 192, "num_attention_heads": 2}
    vision |= {"image_size": side, "patch_size": 14}
    clip = shake(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim)), seed)
    state = {f"model.{key}": value for key, value in clip.state_dict().items()}
    inner, hidden = 128, 4 * dim
    for n in range(2):
        for place, shapes in {
            0: {
                "to_q": (inner, dim),
                "to_kv": (128, dim),
                "to_out": (dim, inner),
                "ff.0": (2 * hidden, dim),
                "ff.2": (dim, hidden),
            },
            1: {"fused_attn_ff_proj": (inner + 128 + 2 * hidden, dim), "attn_out": (dim, inner), "ff_out.1": (dim, hidden)},
        }.items():
            at = f"cross_model.layers.{n}.{place}.fn"
            for part, shape_of in shapes.items():
                state[f"{at}.{part}.weight"] = random(torch.Size(shape_of), "weight", rng)
            state[f"{at}.norm.weight"], state[f"{at}.norm.bias"] = 1 + torch.randn(dim, generator=rng) * 0.3, torch.zeros(dim)
        state[f"cross_model.layers.{n}.1.fn.rotary_emb.inv_freq"] = torch.ones(32)
    return state


def save_mps(folder: Path) -> Path:
    """model.safetensors of MPS beside CLIP's tokenizer."""
    from safetensors.torch import save_file

    save_clip_tokenizer(folder)
    save_file({key: value.contiguous() for key, value in mps_state().items()}, folder / "model.safetensors")
    return folder


def save_vqascore(folder: Path, side: int = 28) -> Path:
    """A CLIP-FlanT5 folder with its tokenizer of words and letters, its vision tower in ``tower``."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["<pad>", "</s>", "<unk>", "▁Yes", "▁no", "▁fox", "▁a", *(chr(c) for c in range(33, 127)), "▁"]
    words = Tokenizer(models.Unigram([(piece, -float(k)) for k, piece in enumerate(pieces)], unk_id=2))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    words.save(str(folder / "tokenizer.json"))
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **ends}))
    shape = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=side, patch_size=7))
    shake(tower, 12).save_pretrained(folder / "tower")
    crop = {"height": side, "width": side}
    save_processor(folder / "tower", "CLIPImageProcessor", {"shortest_edge": side}, do_center_crop=True, crop_size=crop)
    size = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "vocab_size": len(pieces)}
    more = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
    config = T5Config(**size, **more, mm_hidden_size=24, mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2)
    state = shake(T5ForConditionalGeneration(config), 13).state_dict()
    rng = torch.Generator().manual_seed(14)
    for place, inside in ((0, 24), (2, 32)):
        state[f"mm_projector.{place}.weight"] = torch.randn(32, inside, generator=rng) / inside**0.5
        state[f"mm_projector.{place}.bias"] = torch.randn(32, generator=rng) * 0.3
    save_file({key: value.clone().contiguous() for key, value in state.items()}, folder / "model.safetensors", {"format": "pt"})
    told = config.to_dict() | {"model_type": "clip_t5", "architectures": ["CLIPT5ForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def exact_norm(self, x):
    """What transformers' root-mean-square norms compute in float32 whatever they are given."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def exact_rotary(q, k, cos, sin):
    """Qwen's rotary positions of picture patches, which transformers computes in float32 whatever it is given."""
    cos, sin = cos[:, None].to(q), sin[:, None].to(q)

    def turned(x):
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-b, a), dim=-1) * sin

    return turned(q), turned(k)


def doubled(module: nn.Module) -> nn.Module:
    """A network in float64, in place, its norms too. (Rotary positions: the fixture ``exact``.)"""
    for norm in module.double().modules():
        if type(norm).__name__.endswith(("RMSNorm", "T5LayerNorm")):
            norm.forward = MethodType(exact_norm, norm)
    return module


class Always(dict):
    """The same annotation of every prompt: objects of which random detectors see some."""

    def get(self, key, default=None):
        return dict(self)


def save_geneval(folder: Path) -> Path:
    """An OWL-ViT with its CLIP of colours in ``clip``."""
    save_owlvit(folder)
    save_clip(folder / "clip")
    return folder


def save_dino(folder: Path) -> Path:
    """A Grounding-DINO of a layer in each part with its processor."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*BERT, "."]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    out = ["stage2", "stage3", "stage4"]
    swin = SwinConfig(image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=out)
    text = {"model_type": "bert", "vocab_size": len(BERT) + 1, "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 12, "max_text_len": 32}
    shape |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    config = GroundingDinoConfig(backbone_config=swin, text_config=text, **shape)
    shake(GroundingDinoForObjectDetection(config), 15).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    save_processor(folder, "GroundingDinoImageProcessor", size, do_pad=True, resample=2, format="coco_detection")
    return folder


def tiny(name: str, folder: Path) -> Reward:
    """The learned reward of a name, on small random weights written to a folder (kept there when it has them)."""
    folder = folder / f"tiny-{name}"
    fresh = not folder.exists()
    if name == "detect":
        return detect("cat,-red fox", save_owlvit(folder) if fresh else folder)
    if name == "classify":
        return classify(save_classifier(folder) if fresh else folder, "owl")
    if name in ("geneval", "geneval-strict"):
        made = geneval(save_geneval(folder) if fresh else folder, strict="strict" in name, counting=0.4)
        fox, cat = {"class": "fox", "count": 1}, {"class": "cat", "count": 1}
        if name == "geneval":
            fox, cat = fox | {"count": 3}, cat | {"count": 2, "color": "red"}
        return replace(made, metadata=Always(tag="counting", include=[fox, cat]))
    save, make = {
        "aesthetic": (save_aesthetic, aesthetic),
        "pickscore": (save_clip, pickscore),
        "hpsv2": (save_hpsv2, hpsv2),
        "imagereward": (save_imagereward, imagereward),
        "aesthetic-v2-5": (save_aesthetic_v2_5, aesthetic_v2_5),
        "mps": (save_mps, mps),
        "hpsv3": (save_hpsv3, hpsv3),
        "unifiedreward": (save_unifiedreward, unifiedreward),
        "vqascore": (save_vqascore, vqascore),
    }[name]
    return make(save(folder) if fresh else folder)
