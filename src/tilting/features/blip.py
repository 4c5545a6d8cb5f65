"""BLIP's image-grounded text encoder (Li et al. 2022) with ImageReward's head, read from ImageReward.pt.

    h = BERT([CLS] prompt, attending to ViT-L(image)),   s = head(h_[CLS]),   r = (s - mean) / std

The checkpoint's names are BLIP's own; the networks are transformers' BlipVisionModel and BlipTextModel. Published numbers
that transformers' defaults differ from: the image encoder's norms have eps 1e-6, and attention heads are 64 wide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tilting.errors import TiltingError
from tilting.features.checkpoints import Frozen, Take, fill, layers, read_state, refused, shape_of
from tilting.features.images import check_images
from tilting.features.linear_head import LinearHead, read_head
from tilting.features.pixels import Pixels
from tilting.features.sources import here

if TYPE_CHECKING:
    from transformers import BertTokenizer, BlipTextModel, BlipVisionModel

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and std of raw scores over the training pictures, from the published code."""
LENGTH = 35
"""Tokens of a prompt, with [CLS] and [SEP]; what exceeds it is cut off."""
HEAD = 64
VISUAL, TEXT, MLP = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
UNUSED = r"blip\.(text_encoder\.embeddings\.position_ids|(vision|text)_proj\.(weight|bias))"
"""Keys of the checkpoint that the score has no use for."""
NAMES = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding": "patch_embed.proj",
    "post_layernorm": "norm",
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
}


def their_visual_key(key: str) -> tuple[str, Take]:
    """A name of transformers' BlipVisionModel -> BLIP's."""
    key = re.sub(r"^encoder\.layers\.", "blocks.", key)
    for ours, theirs in NAMES.items():
        key = re.sub(rf"(^|\.){re.escape(ours)}(?=$|\.)", rf"\g<1>{theirs}", key)
    return VISUAL + key, lambda t: t


def read_visual(state: Mapping[str, Tensor], path: Path, name: str) -> BlipVisionModel:
    """The image encoder of ``blip.visual_encoder.*``. Raises TiltingError as `fill` does."""
    from transformers import BlipVisionConfig, BlipVisionModel

    width, _, patch, _ = shape_of(state, f"{VISUAL}patch_embed.proj.weight", 1024, 3, 16, 16)
    _, positions, _ = shape_of(state, f"{VISUAL}pos_embed", 1, 197, 1024)
    hidden, _ = shape_of(state, f"{VISUAL}blocks.0.mlp.fc1.weight", 4096, 1024)
    depth, side = layers(state, f"{VISUAL}blocks.", 24), patch * round((positions - 1) ** 0.5)
    shape = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": depth, "image_size": side}
    shape |= {"num_attention_heads": max(1, width // HEAD), "patch_size": patch}
    config = BlipVisionConfig(**shape, hidden_act="gelu", layer_norm_eps=1e-6)
    own = {key: value for key, value in state.items() if key.startswith(VISUAL)}
    return fill(lambda: BlipVisionModel(config), own, their_visual_key, path, name)


def read_text(state: Mapping[str, Tensor], path: Path, name: str) -> BlipTextModel:
    """The text encoder of ``blip.text_encoder.*``, with cross-attention. Raises TiltingError as `fill` does."""
    from transformers import BlipTextConfig, BlipTextModel

    words, width = shape_of(state, f"{TEXT}embeddings.word_embeddings.weight", 30524, 768)
    length, _ = shape_of(state, f"{TEXT}embeddings.position_embeddings.weight", 512, 768)
    hidden, _ = shape_of(state, f"{TEXT}encoder.layer.0.intermediate.dense.weight", 3072, 768)
    _, seen = shape_of(state, f"{TEXT}encoder.layer.0.crossattention.self.key.weight", 768, 1024)
    shape = {"vocab_size": words, "hidden_size": width, "encoder_hidden_size": seen, "intermediate_size": hidden}
    shape |= {"num_hidden_layers": layers(state, f"{TEXT}encoder.layer.", 12), "num_attention_heads": max(1, width // HEAD)}
    tokens = {"max_position_embeddings": length, "pad_token_id": 0, "bos_token_id": words - 2, "sep_token_id": None}
    config = BlipTextConfig(**shape, **tokens, hidden_act="gelu", layer_norm_eps=1e-12, is_decoder=True)
    own = {key: value for key, value in state.items() if key.startswith(TEXT)}
    make, rule = (lambda: BlipTextModel(config, add_pooling_layer=False)), lambda key: (TEXT + key, lambda t: t)
    return fill(make, own, rule, path, name, ignore=UNUSED)


def read_words(folder: str | Path) -> BertTokenizer:
    """bert-base-uncased's tokenizer with BLIP's [DEC] and [ENC] behind its tokens; raises TiltingError when there is none."""
    from transformers import BertTokenizer

    with refused(f"{str(folder)!r} holds no BERT tokenizer (vocab.txt)", (OSError, ValueError)):
        source, local = here(folder)
        # of the model that the user names; a tokenizer's words alone, no code of it
        tokenizer = BertTokenizer.from_pretrained(source, local_files_only=local)  # nosec B615
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


def read_parts(path: Path, name: str = "imagereward") -> tuple[BlipVisionModel, BlipTextModel, LinearHead]:
    """The image encoder, the text encoder and the head of ImageReward.pt.

    Raises:
        TiltingError: it is another checkpoint or a part of one.
    """
    state, known = read_state(path, name), (VISUAL, TEXT, MLP)
    strange = [key for key in state if not key.startswith(known) and not re.fullmatch(UNUSED, key)]
    if strange:
        raise TiltingError(
            f"{str(path)!r} is no checkpoint of {name!r}: {len(strange)} unexpected weights (such as {strange[0]})"
        )
    head = read_head({key: value for key, value in state.items() if key.startswith(MLP)}, path, name, MLP)
    return read_visual(state, path, name), read_text(state, path, name), head


class BlipScorer(Frozen):
    """The frozen network of ImageReward; moves to the device of the images it is given.

    Args:
        visual: from `read_parts`.
        text: from `read_parts`.
        head: from `read_parts`.
        tokenizer: from `read_words`.

    Raises:
        TiltingError: the tokenizer has another number of tokens than the text encoder.
    """

    def __init__(self, visual: BlipVisionModel, text: BlipTextModel, head: LinearHead, tokenizer: BertTokenizer):
        super().__init__()
        self.visual, self.text, self.head, self.tokenizer = visual, text, head, tokenizer
        shape: Any = visual.config
        rows = text.config.vocab_size
        if len(tokenizer) != rows:
            raise TiltingError(f"the tokenizer of 'imagereward' has {len(tokenizer)} tokens, but its text encoder has {rows}")
        self.pixels = Pixels(shape.image_size, shape.image_size, nearest=True)
        self.freeze()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score images, with gradients where the caller has them on.

        Args:
            images: (b, 3, h, w) float in [0, 1].
            prompts: b strings.

        Returns:
            (b,) normalised scores.

        Raises:
            TiltingError: what `check_images` refuses.
        """
        check_images(images, prompts)
        self.follow(images)
        if not len(images):
            return images.to(self.pixels.mean.dtype).flatten(1).sum(1)
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt").to(
            images.device
        )
        seen = self.visual(pixel_values=self.pixels(images)).last_hidden_state
        whole = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        picture = {"encoder_hidden_states": seen, "encoder_attention_mask": whole}
        out = self.text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **picture)
        return (self.head(out.last_hidden_state[:, 0]) - MEAN) / STD
