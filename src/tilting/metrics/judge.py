"""`pocket-judge`: scores whether an image shows what its prompt asks, by a network that is never used as a reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tilting.errors import TiltingError
from tilting.features.images import check_images
from tilting.features.packaged import POCKET_JUDGE
from tilting.lazy import torch
from tilting.metrics.declaration import METRICS
from tilting.models.words import Words, load_words, read_prompt

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.features.judge import JudgeNet


class PocketJudge:
    """A classifier of concept, style and background that scores drawings by their prompts, without gradients.

    score(x, c) = log p(concept | x) + [style named] log p(style | x) + [background named] log p(background | x).

    Args:
        folder: written by `tilting.features.judge.save_judge`; the packaged judge by default.
        words: the vocabulary of its classes; pocket's by default.

    Raises:
        TiltingError: no such folder, or its classes are not those of the vocabulary.
    """

    net: JudgeNet
    words: Words

    def __init__(self, folder: str | Path | None = None, words: Words | None = None):
        from tilting.features.judge import load_judge

        where = POCKET_JUDGE if folder is None else Path(folder)
        if not ((where / "config.json").is_file() and (where / "model.safetensors").is_file()):
            raise TiltingError(f"there is no judge in {str(where)!r} (config.json and model.safetensors)")
        self.net = load_judge(where)
        self.words = load_words() if words is None else words
        known = {"concept": len(self.words.concepts), "style": len(self.words.styles), "background": len(self.words.colours)}
        if self.net.config["sizes"] != known:
            raise TiltingError(f"the judge in {str(where)!r} tells {self.net.config['sizes']} apart, the vocabulary {known}")

    def log_probabilities(self, images: Tensor) -> dict[str, Tensor]:
        """Log-probabilities of every class: "concept", "style" and "background", each (b, classes) on the images' device.

        Args:
            images: (b, 3, h, w) float in [0, 1]; other sizes than 64 x 64 are resized. Of videos (b, frames, 3, h, w) the mean
                over frames is given.

        Raises:
            TiltingError: what `check_images` refuses.
        """
        if images.ndim == 5:
            each = self.log_probabilities(images.flatten(0, 1))
            return {name: logs.unflatten(0, images.shape[:2]).mean(1) for name, logs in each.items()}
        check_images(images)
        if not len(images):
            return {name: images.new_zeros(0, size, dtype=torch.float32) for name, size in self.net.config["sizes"].items()}
        self.net.to(images.device)
        with torch.no_grad():
            return {name: logits.log_softmax(-1) for name, logits in self.net(images.detach().float()).items()}

    def probabilities(self, images: Tensor) -> dict[str, Tensor]:
        """Probabilities of every class: "concept", "style" and "background", each (b, classes), rows summing to 1."""
        return {name: values.exp() for name, values in self.log_probabilities(images).items()}

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The log-probability of what each prompt asks.

        Args:
            images: (b, 3, h, w) float in [0, 1], or videos (b, frames, 3, h, w), of which it is the mean over frames.
            prompts: b strings.

        Returns:
            (b,) float32 in nats, at most 0; NaN where the prompt names no concept of the vocabulary.

        Raises:
            TiltingError: what `check_images` refuses.
        """
        check_images(images[:, 0] if images.ndim == 5 else images, prompts)
        logs = self.log_probabilities(images)
        score = images.new_full((len(images),), float("nan"), dtype=torch.float32)
        for i, prompt in enumerate(prompts):
            asked = read_prompt(self.words, prompt)
            if asked.concept is None:
                continue
            score[i] = logs["concept"][i, asked.concept]
            if asked.style is not None:
                score[i] += logs["style"][i, asked.style]
            if asked.background is not None:
                score[i] += logs["background"][i, asked.background]
        return score


@METRICS.declare(
    "judge", "pocket-judge", "log-probability of what the prompt asks", ("judge", "images", "prompts"), judges=True
)
def judge_score(judge: PocketJudge, images: Tensor, prompts: list[str]) -> Tensor:
    """`PocketJudge.score`, (b,) in nats, NaN where the prompt names no concept."""
    return judge.score(images, prompts)
