"""Qwen2-VL and Qwen2.5-VL as frozen readers of a picture and a text, differentiable in the picture.

The picture is resized to multiples of 28 pixels (bicubic), cut into patches of 14 whose 2 x 2 neighbours become one token, and
stands in a chat in front of the text, as the models' own processors have it. Source: transformers and the models' folders.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tilting.errors import TiltingError
from tilting.features.checkpoints import Frozen, loaded, preprocessor_of, pretrained, shape_of, tokenizer_of
from tilting.features.images import check_images
from tilting.features.pixels import CLIP_MEAN, CLIP_STD, resize

CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>{picture}<|vision_end|>"
    "{text}<|im_end|>\n<|im_start|>assistant\n"
)
"""The chat template of both models for one picture and one text."""
PICTURE, REWARD = "<|image_pad|>", "<|Reward|>"
LEAST, MOST = 56 * 56, 28 * 28 * 1280
"""Pixels of a picture, by the processor's default."""
FIXED = 256 * 28 * 28
"""Pixels of every picture of HPSv3."""
HEAD = (1024, 16, 2)
"""Widths of HPSv3's head behind the hidden size: ReLU between them, and a dropout that is off at inference."""
TYPES = ("qwen2_vl", "qwen2_5_vl")


def fitting(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """The size that a picture is resized to: multiples of ``factor`` nearest its own whose product is within the bounds."""
    rows, columns = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


class Embedded(NamedTuple):
    """What the language model is fed.

    Attributes:
        embeds: (b, n, dim). ids: (b, n) tokens, padded on the right. mask: (b, n), 1 where there is no padding.
        places: (3, b, n) positions.
    """

    embeds: Tensor
    ids: Tensor
    mask: Tensor
    places: Tensor


class QwenReader(Frozen):
    """A frozen Qwen2-VL or Qwen2.5-VL in eval mode, in the precision its file has; moves to the device of its images.

    Args:
        model: transformers' Qwen2VLModel or Qwen2_5_VLModel.
        tokenizer: its own.
        config: its preprocessor_config.json.
        pixels: the least and the most pixels of a picture; by default the config's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, tokenizer: Any, config: Mapping[str, Any], pixels: tuple[int, int] | None = None):
        super().__init__()
        self.body, self.tokenizer = model, tokenizer
        size = config.get("size") or {}
        low = config.get("min_pixels") or size.get("shortest_edge", LEAST)
        high = config.get("max_pixels") or size.get("longest_edge", MOST)
        self.least, self.most = pixels or (low, high)
        shape = model.config.vision_config
        self.patch, self.merge, self.frames = shape.patch_size, shape.spatial_merge_size, shape.temporal_patch_size
        kind = next(model.parameters()).dtype
        mean, std = config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD)
        self.register_buffer("mean", torch.tensor(mean, dtype=kind)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=kind)[:, None, None], persistent=False)

    def patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the image encoder is fed of images (b, 3, h, w) in [0, 1]: patches (b rows columns, 3 frames patch²) in groups
        of merge², and their grid (b, 3), frames, rows and columns. The picture is every frame of one."""
        p, m, (b, _, h, w) = self.patch, self.merge, images.shape
        exact = images.to(torch.promote_types(self.mean.dtype, torch.float32))  # of 8 bits and more
        x = resize(exact, *fitting(h, w, p * m, self.least, self.most)).to(self.mean.dtype)
        rows, columns = x.shape[2] // p, x.shape[3] // p
        x = ((x - self.mean) / self.std).reshape(b, 3, rows // m, m, p, columns // m, m, p)
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None].expand(-1, -1, -1, -1, -1, -1, self.frames, -1, -1)
        grid = torch.tensor([[1, rows, columns]], device=images.device).expand(b, -1)
        return x.reshape(b * rows * columns, 3 * self.frames * p * p), grid

    def embed(self, images: Tensor, texts: list[str], answer: str, flat: bool) -> Embedded:
        """A chat of each picture and text.

        Args:
            images: (b, 3, h, w) float in [0, 1], b at least 1.
            texts: b of them.
            answer: how the answer begins.
            flat: whether picture tokens count on as words do; else they have positions in two dimensions, as the model was
                pre-trained.
        """
        check_images(images, texts)
        self.follow(images)
        pixels, grid = self.patches(images)
        count = int(grid[0].prod()) // self.merge**2
        chats = [CHAT.format(picture=PICTURE * count, text=text.replace(PICTURE, "")) + answer for text in texts]
        batch = self.tokenizer(chats, padding=True, padding_side="right", return_tensors="pt").to(images.device)
        ids, mask = batch.input_ids, batch.attention_mask
        held = ids == self.token(PICTURE)
        seen = self.body.get_image_features(pixels, grid)
        seen = torch.cat(tuple(getattr(seen, "pooler_output", seen)))
        words = self.body.get_input_embeddings()(ids)
        embeds = words.masked_scatter(held[..., None], seen.to(words.dtype))
        places = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape) if flat else self.places(held, grid[0])
        return Embedded(embeds, ids, mask, places)

    def token(self, text: str) -> int:
        """The number of a text that is one token. Raises TiltingError."""
        number = self.tokenizer.convert_tokens_to_ids(text)
        if number is None or number == self.tokenizer.unk_token_id:
            raise TiltingError(f"the tokenizer of Qwen2-VL has no token {text!r}")
        return number

    def places(self, held: Tensor, grid: Tensor) -> Tensor:
        """Positions (3, b, n) of tokens of which ``held`` (b, n) are the picture's: time, row and column there, and for words
        one number, which goes on behind the picture with the larger of its sides."""
        rows, columns = int(grid[1]) // self.merge, int(grid[2]) // self.merge
        count, device = rows * columns, held.device
        first = held.int().argmax(1)
        n = torch.arange(held.shape[1], device=device).expand(len(held), -1)
        behind = n >= (first + count)[:, None]
        words = torch.where(behind, n - count + max(rows, columns), n)
        inside = (n - first[:, None]).clamp(0, count - 1)
        place = torch.stack((torch.zeros_like(inside), inside // columns, inside % columns)) + first[:, None]
        return torch.where(held, place, words)


class Hpsv3Scorer(QwenReader):
    """HPSv3 (Ma et al. 2025): μ of N(μ, σ²), from a head on the hidden state of the token <|Reward|>.

    The published code feeds embeddings without positions, so that picture tokens count on as words do: it was trained so.
    """

    def __init__(self, model: Any, tokenizer: Any, config: Mapping[str, Any], head: nn.Sequential):
        super().__init__(model, tokenizer, config, (FIXED, FIXED))
        self.head = head
        self.freeze()

    def forward(self, images: Tensor, texts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] and b texts that hold one <|Reward|> -> (b,) μ, in the head's precision."""
        given = self.embed(images, texts, "", flat=True)
        hidden = self.body.language_model(
            inputs_embeds=given.embeds, attention_mask=given.mask, position_ids=given.places, use_cache=False
        ).last_hidden_state
        at = (given.ids == self.token(REWARD)).int().argmax(1)
        told = hidden[torch.arange(len(at), device=at.device), at]
        first: Any = self.head[0]
        return self.head(told.to(first.weight.dtype))[:, 0]


def our_key(key: str) -> str:
    """A checkpoint's name, as transformers 4.45 (the published file) or a later one wrote it -> today's Qwen2VLModel's."""
    return re.sub(r"^model\.(language_model\.)?", "language_model.", re.sub(r"^model\.visual\.", "visual.", key))


def read_hpsv3(state: Mapping[str, Tensor], path: Path, folder: str | Path) -> Hpsv3Scorer:
    """HPSv3 of its one file of weights, and the config, the tokenizer and the preprocessing of Qwen2-VL.

    Args:
        state: keys of Qwen2VLForConditionalGeneration and ``rm_head.*``.
        path: of the checkpoint, for the refusal.
        folder: of Qwen2-VL-7B-Instruct, or its name on the hub; its weights are not read.

    Raises:
        TiltingError: either does not load, or keys are missing, unexpected or of another shape.
    """
    from transformers import Qwen2VLConfig, Qwen2VLModel

    tokenizer, config = tokenizer_of(folder, "Qwen2-VL"), preprocessor_of(folder, "Qwen2-VL")
    tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]}, replace_extra_special_tokens=False)
    shape: Any = loaded(Qwen2VLConfig, folder, "Qwen2-VL")
    words, width = shape_of(state, "model.embed_tokens.weight", shape.text_config.vocab_size, shape.text_config.hidden_size)
    shape.text_config.vocab_size = words  # the checkpoint's table ends with its own token
    if len(tokenizer) > words:
        raise TiltingError(f"the tokenizer of 'hpsv3' has {len(tokenizer)} tokens, but its body has {words}")
    body = {our_key(key): value for key, value in state.items() if not key.startswith(("rm_head.", "lm_head."))}
    model = pretrained(Qwen2VLModel, path, "hpsv3", config=shape, state_dict=body, dtype=next(iter(body.values())).dtype)
    widths = (width, *HEAD)
    linear = [nn.Linear(a, b) for a, b in pairwise(widths)]
    head = nn.Sequential(linear[0], nn.ReLU(), nn.Identity(), linear[1], nn.ReLU(), linear[2])
    own = {key.removeprefix("rm_head."): value.float() for key, value in state.items() if key.startswith("rm_head.")}
    try:
        head.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())[:120]
        raise TiltingError(f"{str(path)!r} is no checkpoint of 'hpsv3': its head does not fit: {reason}") from error
    return Hpsv3Scorer(model, tokenizer, config, head)


class RatingScorer(QwenReader):
    """The expected rating of a model that writes one.

        r = Σ_k p(k) (k + p(. | k) Σ_d p(d | k.) d / 10),   k = 1 ... 5

    with p over the digits that may come among themselves; behind the largest nothing is added.

    Args:
        folder: a folder that Qwen2VLForConditionalGeneration or Qwen2_5_VLForConditionalGeneration wrote with its processor,
            or the name of one on the hub.

    Raises:
        TiltingError: it does not load, or is another model.
    """

    def __init__(self, folder: str | Path):
        from transformers import AutoModelForImageTextToText

        model = pretrained(AutoModelForImageTextToText, folder, "Qwen2-VL", dtype="auto")
        if model.config.model_type not in TYPES:
            raise TiltingError(f"{str(folder)!r} is a {model.config.model_type}, not a Qwen2-VL or Qwen2.5-VL")
        super().__init__(model.model, tokenizer_of(folder, "Qwen2-VL"), preprocessor_of(folder, "Qwen2-VL"))
        self.lm_head = model.lm_head
        self.freeze()

    def forward(self, images: Tensor, texts: list[str], answer: str = "Final Score: ", most: int = 5) -> Tensor:
        """The expected rating.

        Args:
            images: (b, 3, h, w) float in [0, 1], b at least 1.
            texts: b questions.
            answer: how the answer begins, up to the rating.
            most: the largest rating.

        Returns:
            (b,) in [1, most].
        """
        given = self.embed(images, texts, answer, flat=False)
        digits = torch.tensor([self.token(str(d)) for d in range(10)], device=images.device)
        out = self.body.language_model(
            inputs_embeds=given.embeds, attention_mask=given.mask, position_ids=given.places, use_cache=True
        )
        rows, last = torch.arange(len(images), device=images.device), given.mask.sum(1) - 1
        first = self.wide(out.last_hidden_state[rows, last])[:, digits[1 : most + 1]].softmax(-1)
        point = self.token(".")
        place = given.places[:, rows, last][..., None] + torch.arange(1, 3, device=images.device)
        mask, rating = torch.cat((given.mask, given.mask.new_ones(len(images), 2)), 1), first.new_zeros(len(images))
        for k in range(1, most + 1):
            more = 0.0
            if k < most:
                two = torch.stack((digits[k], digits.new_tensor(point))).expand(len(images), 2)
                words = self.body.get_input_embeddings()(two)
                told = self.body.language_model(
                    inputs_embeds=words,
                    attention_mask=mask,
                    position_ids=place,
                    past_key_values=out.past_key_values,
                    use_cache=True,
                ).last_hidden_state
                out.past_key_values.crop(-2)
                begun, tenth = self.wide(told).unbind(1)
                more = begun.softmax(-1)[:, point] * (tenth[:, digits].softmax(-1) * torch.arange(10).to(tenth)).sum(-1) / 10
            rating = rating + first[:, k - 1] * (k + more)
        return rating

    def wide(self, hidden: Tensor) -> Tensor:
        """Logits, in float32 at least: probabilities of half precision are too coarse to compare."""
        logits = self.lm_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
