"""Small random-weight networks of the published architectures, saved in the published files' format and key names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from tilting.rewards import aesthetic, classify, detect, hpsv2, imagereward, pickscore
from tilting.types import Reward

NAMES = ("aesthetic", "pickscore", "hpsv2", "imagereward", "detect", "classify")
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


def save_clip(folder: Path, side: int = 32, act: str = "quick_gelu", seed: int = 0) -> Path:
    """A transformers CLIPModel folder with its tokenizer and processor."""
    from transformers import CLIPConfig, CLIPModel

    count = save_clip_tokenizer(folder)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": act}
    text = shape | {"vocab_size": count, "bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    vision = shape | {"image_size": side, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
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


def tiny(name: str, folder: Path) -> Reward:
    """The learned reward of a name, on small random weights written to a folder (kept there when it has them)."""
    folder = folder / f"tiny-{name}"
    fresh = not folder.exists()
    if name == "detect":
        return detect("cat,-red fox", save_owlvit(folder) if fresh else folder)
    if name == "classify":
        return classify(save_classifier(folder) if fresh else folder, "owl")
    save, make = {
        "aesthetic": (save_aesthetic, aesthetic),
        "pickscore": (save_clip, pickscore),
        "hpsv2": (save_hpsv2, hpsv2),
        "imagereward": (save_imagereward, imagereward),
    }[name]
    return make(save(folder) if fresh else folder)
