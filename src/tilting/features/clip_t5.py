"""CLIP-FlanT5 (Lin et al. 2024): CLIP's picture tokens in front of a question that Flan-T5 reads, and what it would answer.

    r = exp(mean_i log p(a_i | a_<i, picture, question))

over the tokens of the answer and its end. The folder is the published one; its names are those of transformers'
T5ForConditionalGeneration and ``mm_projector.*``. What it holds of the vision tower is not read: the tower is OpenAI's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting.errors import TiltingError
from tilting.features.checkpoints import Frozen, loaded, pixels_in, pretrained, tokenizer_of
from tilting.features.images import check_images

BEFORE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions. USER: "
)
BEHIND = "\n{question} ASSISTANT: "
"""The picture stands between them; either ends with the end of a text, as the published code has it."""
PROJECTOR = "mlp2x_gelu"


class ClipT5(Frozen):
    """A frozen CLIP-FlanT5 in eval mode; moves to the device of the images it is given.

    Args:
        folder: the published one, or its name on the hub. It sees when `look_through` has been called.

    Raises:
        TiltingError: it does not load, or has another projector.
    """

    def __init__(self, folder: str | Path):
        from transformers import T5Config, T5ForConditionalGeneration

        class Reader(T5ForConditionalGeneration):
            def __init__(self, config: Any):
                super().__init__(config)
                first, last = nn.Linear(config.mm_hidden_size, config.d_model), nn.Linear(config.d_model, config.d_model)
                self.mm_projector = nn.Sequential(first, nn.GELU(), last)
                self.post_init()

        super().__init__()
        config = loaded(T5Config, folder, "CLIP-FlanT5")
        if getattr(config, "mm_projector_type", None) != PROJECTOR:
            raise TiltingError(f"{str(folder)!r} is no CLIP-FlanT5: its projector is not {PROJECTOR!r}")
        self.layer: int = getattr(config, "mm_vision_select_layer", -2)
        self.model: Any = pretrained(Reader, folder, "CLIP-FlanT5", config=config, dtype="auto")
        self.tokenizer = tokenizer_of(folder, "CLIP-FlanT5")
        self.freeze()

    def look_through(self, tower: str | Path) -> ClipT5:
        """The same with CLIP's image encoder of a folder, or a name on the hub. Raises TiltingError if it does not fit."""
        from transformers import CLIPVisionModel

        self.tower: Any = pretrained(CLIPVisionModel, tower, "CLIP", dtype=self.model.dtype)
        wide, wanted = self.tower.config.hidden_size, self.model.config.mm_hidden_size
        if wide != wanted:
            raise TiltingError(f"the CLIP {str(tower)!r} has tokens of {wide}, 'vqascore' needs {wanted}")
        self.pixels = pixels_in(tower)
        return self

    def squared(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) in [0, 1] in the middle of squares of CLIP's mean."""
        images = images.to(self.pixels.mean.dtype)
        side, (h, w) = max(images.shape[2:]), images.shape[2:]
        colour = (self.pixels.mean * 255).floor() / 255
        top, left = (side - h) // 2, (side - w) // 2
        return F.pad(images - colour, (left, side - w - left, top, side - h - top)) + colour

    def picture(self, images: Tensor) -> Tensor:
        """Tokens (b, patches, d_model) of images (b, 3, h, w) in [0, 1]."""
        pixels = self.pixels(self.squared(images)).to(self.tower.dtype)
        seen = self.tower(pixel_values=pixels, output_hidden_states=True)
        return self.model.mm_projector(seen.hidden_states[self.layer][:, 1:])

    def forward(self, images: Tensor, questions: list[str], answer: str = "Yes") -> Tensor:
        """How likely an answer is, with gradients where the caller has them on.

        Args:
            images: (b, 3, h, w) float in [0, 1], b at least 1.
            questions: b of them.
            answer: the same to all.

        Returns:
            (b,) in (0, 1).

        Raises:
            TiltingError: what `check_images` refuses.
        """
        check_images(images, questions)
        self.follow(images)
        before = self.tokenizer([BEFORE] * len(images), return_tensors="pt").input_ids.to(images.device)
        said = [BEHIND.format(question=question) for question in questions]
        behind = self.tokenizer(said, padding=True, padding_side="right", return_tensors="pt").to(images.device)
        table, seen = self.model.get_input_embeddings(), self.picture(images)
        embeds = torch.cat((table(before), seen.to(table.weight.dtype), table(behind.input_ids)), 1)
        read = behind.attention_mask.new_ones(len(images), before.shape[1] + seen.shape[1])
        labels = torch.tensor(self.tokenizer(answer).input_ids, device=images.device).expand(len(images), -1)
        start = labels.new_full((len(images), 1), self.model.config.decoder_start_token_id)
        mask, given = torch.cat((read, behind.attention_mask), 1), torch.cat((start, labels[:, :-1]), 1)
        logits = self.model(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=given).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0].mean(1).exp()
