"""MPS (Zhang et al. 2024): a CLIP whose image tokens attend to the words of the prompt that match a condition.

    s_i = max_j <t_i, k_j>,   word i is read if s_i > 0.3 max s,   h = cross(image tokens, text tokens; mask),
    r = cos(h_[CLS], t_[EOS])

t and k are the projected tokens of the prompt and of the condition, 77 each with their padding, as the published code has them
(it gives the text encoder no mask). `cross` are four pairs of an attention over words and one over the picture, each beside a
SwiGLU: many query heads, one head of keys and values, norms without bias, rotary positions in the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting.features.checkpoints import Frozen, Take, fill, layers, shape_of
from tilting.features.images import check_images
from tilting.features.pixels import Pixels

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, texture, "
    "quantity, attributes, position, number, location, word, things."
)
"""The published condition for overall preference."""
READ = 0.3
"""Words whose similarity to the condition is above this part of the largest are read."""
HEAD, VISION_HEAD = 64, 80
CACHED = 1024
"""Prompts that are kept; when full, the cache starts over."""


class SwiGlu(nn.Module):
    """x silu(gate)."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return x * F.silu(gate)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q (b, n, heads 64) over one head of keys and values (b, m, 64); mask (b, m), True where a key is read."""
    b, n, width = q.shape
    many = q.reshape(b, n, width // HEAD, HEAD).transpose(1, 2)
    seen = None if mask is None else mask[:, None, None]
    out = F.scaled_dot_product_attention(many, k[:, None], v[:, None], attn_mask=seen)
    return out.transpose(1, 2).reshape(b, n, width)


def rotated(x: Tensor) -> Tensor:
    """Rotary positions 0, 1, ... of (b, n, heads 64), in halves."""
    place = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    angle = place[:, None] / 10000 ** (torch.arange(0, HEAD, 2, device=x.device, dtype=x.dtype) / HEAD)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x.reshape(*x.shape[:2], -1, HEAD).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(2)


class OverWords(nn.Module):
    """x + attention of x over words + feed-forward of x."""

    def __init__(self, dim: int, inner: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, inner, bias=False), nn.Linear(dim, 2 * HEAD, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * hidden, bias=False), SwiGlu(), nn.Linear(hidden, dim, bias=False))

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        h = self.norm(x)
        k, v = self.to_kv(words).chunk(2, dim=-1)
        return x + self.to_out(attend(self.to_q(h), k, v, mask)) + self.ff(h)


class OverPicture(nn.Module):
    """x + attention of x over itself + feed-forward of x."""

    def __init__(self, dim: int, inner: int, hidden: int):
        super().__init__()
        self.norm, self.parts = nn.LayerNorm(dim), (inner, HEAD, HEAD, 2 * hidden)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(inner, dim, bias=False)
        self.ff_out = nn.Sequential(SwiGlu(), nn.Linear(hidden, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, dim=-1)
        return x + self.attn_out(attend(rotated(q), rotated(k), v)) + self.ff_out(ff)


class Cross(nn.Module):
    """Pairs of `OverWords` and `OverPicture`."""

    def __init__(self, depth: int, dim: int, inner: int, hidden: int):
        super().__init__()
        pair = [nn.ModuleList((OverWords(dim, inner, hidden), OverPicture(dim, inner, hidden))) for _ in range(depth)]
        self.layers = nn.ModuleList(pair)

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """x (b, n, dim), words (b, m, dim), mask (b, m) -> (b, n, dim)."""
        for pair in self.layers:
            over_words, over_picture = pair  # type: ignore[misc]
            x = over_picture(over_words(x, words, mask))
        return x


def their_key(key: str) -> tuple[str, Take]:
    """A name of `Cross` -> the checkpoint's."""
    first, pair, part, rest = key.split(".", 3)
    return f"cross_model.{first}.{pair}.{part}.fn.{rest}", lambda t: t


def read_parts(state: Mapping[str, Tensor], path: Path, name: str = "mps") -> tuple[Any, Cross]:
    """The CLIPModel and the cross layers of a checkpoint, in float32; widths and depths are the checkpoint's.

    Args:
        state: keys ``model.*``, of transformers' CLIPModel, and ``cross_model.layers.*``.
        path: of the checkpoint, for the refusal.
        name: of the reward, for the refusal.

    Raises:
        TiltingError: keys are missing, unexpected or of another shape.
    """
    from transformers import CLIPConfig, CLIPModel

    width, _, patch, _ = shape_of(state, "model.vision_model.embeddings.patch_embedding.weight", 1280, 3, 14, 14)
    positions, _ = shape_of(state, "model.vision_model.embeddings.position_embedding.weight", 257, 1280)
    words, text_width = shape_of(state, "model.text_model.embeddings.token_embedding.weight", 49408, 1024)
    length, _ = shape_of(state, "model.text_model.embeddings.position_embedding.weight", 77, 1024)
    hidden, _ = shape_of(state, "model.vision_model.encoder.layers.0.mlp.fc1.weight", 5120, 1280)
    text_hidden, _ = shape_of(state, "model.text_model.encoder.layers.0.mlp.fc1.weight", 4096, 1024)
    dim, _ = shape_of(state, "model.visual_projection.weight", 1024, 1280)
    common = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
    vision = {"hidden_size": width, "intermediate_size": hidden, "patch_size": patch}
    vision |= {"num_attention_heads": max(1, width // VISION_HEAD), "image_size": patch * round((positions - 1) ** 0.5)}
    vision |= {"num_hidden_layers": layers(state, "model.vision_model.encoder.layers.", 32)}
    text = {"hidden_size": text_width, "intermediate_size": text_hidden, "max_position_embeddings": length}
    text |= {"num_attention_heads": max(1, text_width // HEAD), "vocab_size": words, "eos_token_id": 2}  # pools at the largest
    text |= {"num_hidden_layers": layers(state, "model.text_model.encoder.layers.", 24)}
    config = CLIPConfig(vision_config=vision | common, text_config=text | common, projection_dim=dim)
    clip_state = {key: value for key, value in state.items() if not key.startswith("cross_model.")}
    clip = fill(lambda: CLIPModel(config), clip_state, lambda key: (f"model.{key}", lambda t: t), path, name, UNUSED)
    inner, _ = shape_of(state, "cross_model.layers.0.0.fn.to_q.weight", 1024, 1024)
    _, feed = shape_of(state, "cross_model.layers.0.0.fn.ff.2.weight", 1024, 4096)
    depth = layers(state, "cross_model.layers.", 4)
    own = {key: value for key, value in state.items() if key.startswith("cross_model.")}
    return clip, fill(lambda: Cross(depth, dim, inner, feed), own, their_key, path, name, UNUSED)


UNUSED = r"model\.(text|vision)_model\.embeddings\.position_ids|cross_model\..*\.(inv_freq|pos_emb)"
"""Buffers that some of the checkpoints hold."""


class MpsScorer(Frozen):
    """The frozen network of MPS; moves to the device of the images it is given.

    Args:
        clip: from `read_parts`.
        cross: from `read_parts`.
        tokenizer: of CLIP.
        condition: what the preference is about.
    """

    def __init__(self, clip: Any, cross: Cross, tokenizer: Any, condition: str = CONDITION):
        super().__init__()
        self.clip, self.cross, self.tokenizer, self.condition = clip, cross, tokenizer, condition
        side = clip.config.vision_config.image_size
        self.pixels = Pixels(side, side)
        self._texts: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.freeze()

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Projected tokens (b, m, dim), and those of the end (b, dim)."""
        length = self.clip.config.text_config.max_position_embeddings
        full = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        out = self.clip.text_model(input_ids=self.tokenizer(texts, **full).input_ids.to(self.pixels.mean.device))
        return self.clip.text_projection(out.last_hidden_state), self.clip.text_projection(out.pooler_output)

    def text(self, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Words (b, m, dim), their mask (b, m) and the whole (b, dim) of prompts, without gradient; each is computed once."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        if new:
            with torch.inference_mode(False), torch.no_grad():
                words, whole = self._tokens(new)
                near = (words @ self._tokens([self.condition])[0][0].T).amax(-1)
                mask = near / near.amax(-1, keepdim=True) > READ
            kept = self._texts if len(self._texts) + len(new) <= CACHED else {p: self._texts[p] for p in {*prompts} - {*new}}
            self._texts = kept | dict(zip(new, zip(words, mask, whole, strict=True), strict=True))
        mean, held = self.pixels.mean, [self._texts[p] for p in prompts]  # which may be from before a move
        words, whole = (torch.stack([one[k].to(mean) for one in held]) for k in (0, 2))
        return words, torch.stack([mask.to(mean.device) for _, mask, _ in held]), whole

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score images, with gradients where the caller has them on.

        Args:
            images: (b, 3, h, w) float in [0, 1], b at least 1.
            prompts: b strings; what exceeds the model's length is cut off.

        Returns:
            (b,) cosines.

        Raises:
            TiltingError: what `check_images` refuses.
        """
        check_images(images, prompts)
        self.follow(images)
        words, mask, whole = self.text(prompts)
        seen = self.clip.visual_projection(self.clip.vision_model(pixel_values=self.pixels(images)).last_hidden_state)
        return F.cosine_similarity(self.cross(seen, words, mask)[:, 0], whole, dim=-1)
