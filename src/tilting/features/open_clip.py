"""A ViT-H-14 checkpoint of open_clip as a transformers CLIPModel: the same network under other names.

open_clip stacks the query, key and value of torch's attention into ``in_proj_weight`` (3d, d), multiplies by its projections
from the right (``x @ proj``) and uses the exact gelu for ViT-H; it pads prompts with zeros and pools the text at the largest
token number, which is the end-of-text token's (no later position can be seen from there, so the padding has no effect).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from tilting.errors import TiltingError
from tilting.features.checkpoints import Take, fill, layers, shape_of

if TYPE_CHECKING:
    from transformers import CLIPModel

HEAD, TEXT_HEAD = 80, 64
"""Width of one attention head of ViT-H-14: 1280 / 16 of images, 1024 / 16 of text."""
PLAIN = {
    "logit_scale": "logit_scale",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
}
NORMS = {
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.final_layer_norm": "ln_final",
}
PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
STACKED = ("q", "k", "v")
BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def their_key(key: str) -> tuple[str, Take]:
    """A name of transformers' CLIPModel -> open_clip's, and what to take of that tensor."""
    if key in PLAIN:
        return PLAIN[key], (lambda t: t.T) if "projection" in key else (lambda t: t)
    block = BLOCK.fullmatch(key)
    if block is None:
        stem, _, kind = key.rpartition(".")
        return f"{NORMS[stem]}.{kind}", lambda t: t
    side, number, part, kind = block.groups()
    above = f"{'visual.' if side == 'vision' else ''}transformer.resblocks.{number}"
    if part in PARTS:
        return f"{above}.{PARTS[part]}.{kind}", lambda t: t
    row = STACKED.index(part.removeprefix("self_attn.")[0])
    return f"{above}.attn.in_proj_{kind}", lambda t: t[row * (len(t) // 3) : (row + 1) * (len(t) // 3)]


def read_open_clip(state: Mapping[str, Tensor], path: Path, name: str) -> CLIPModel:
    """Build the CLIPModel of a ViT-H-14 checkpoint in float32; widths and depths are the checkpoint's.

    Args:
        state: open_clip's keys: ``visual.conv1.weight``, ``transformer.resblocks.0.attn.in_proj_weight`` ...
        path: of the checkpoint, for the refusal.
        name: of the reward, for the refusal.

    Raises:
        TiltingError: it is another architecture, or keys are missing, unexpected or of another shape.
    """
    from transformers import CLIPConfig, CLIPModel

    width, _, patch, _ = shape_of(state, "visual.conv1.weight", 1280, 3, 14, 14)
    positions, _ = shape_of(state, "visual.positional_embedding", 257, 1280)
    words, text_width = shape_of(state, "token_embedding.weight", 49408, 1024)
    length, _ = shape_of(state, "positional_embedding", 77, 1024)
    _, dim = shape_of(state, "visual.proj", 1280, 1024)
    hidden, _ = shape_of(state, "visual.transformer.resblocks.0.mlp.c_fc.weight", 5120, 1280)
    text_hidden, _ = shape_of(state, "transformer.resblocks.0.mlp.c_fc.weight", 4096, 1024)
    if width % HEAD or text_width % TEXT_HEAD:
        raise TiltingError(f"{str(path)!r} is no ViT-H-14, which {name!r} needs: it is {width} and {text_width} wide")
    common = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
    vision = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_attention_heads": width // HEAD,
        "num_hidden_layers": layers(state, "visual.transformer.resblocks.", 32),
        "patch_size": patch,
        "image_size": patch * round((positions - 1) ** 0.5),
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": text_hidden,
        "num_attention_heads": text_width // TEXT_HEAD,
        "num_hidden_layers": layers(state, "transformer.resblocks.", 24),
        "vocab_size": words,
        "max_position_embeddings": length,
        "bos_token_id": words - 2,
        "pad_token_id": words - 1,
        "eos_token_id": 2,  # transformers' sign for pooling at the largest token number
    }
    config = CLIPConfig(vision_config=vision | common, text_config=text | common, projection_dim=dim)
    return fill(lambda: CLIPModel(config), state, their_key, path, name, ignore=r"(visual\.)?attn_mask")
