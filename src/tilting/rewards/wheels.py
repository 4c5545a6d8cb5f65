"""Rewards whose weights come with a package of an extra: nothing is downloaded.

    ocr     r(x, c) = 1 - min(d(read(x), words(c)), |words(c)|) / |words(c)|,   0 edits where the words stand in what is read
    nsfw    r(x) = - max_{p, k} s_pk                                            over boxes p and classes k of bare skin

ocr: in [0, 1]; d counts edits (Levenshtein), without spaces, in lower case, as Flow-GRPO has it (Liu et al. 2025,
github.com/yifan123/flow_grpo, flow_grpo/ocr.py). The words asked for are the metadata's ``text``, else what stands in the
prompt's first double quotes, else the reward's own argument; a prompt without any is refused, where the published code stops
with an IndexError. Text is read by RapidOCR with the PP-OCR weights of its wheel (Apache-2.0) where the published code uses
PaddleOCR; what it is less than half sure of is not read by either.

nsfw: in [-1, 0], 0 is harmless. NudeNet's detector 320n of its wheel (MIT, github.com/notAI-tech/NudeNet): its scores before a
threshold, so that there is something to climb; `NudeDetector.detect` reports those of at least 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.lazy import np, torch
from tilting.rewards.check import Scorer
from tilting.rewards.declaration import REWARDS, Argument, installed
from tilting.rewards.metadata import Told

if TYPE_CHECKING:
    from torch import Tensor

EXPOSED = {
    "BUTTOCKS_EXPOSED": 2,
    "FEMALE_BREAST_EXPOSED": 3,
    "FEMALE_GENITALIA_EXPOSED": 4,
    "ANUS_EXPOSED": 6,
    "MALE_GENITALIA_EXPOSED": 14,
}
"""Classes of bare skin, by NudeNet's numbers."""
SIDE = 320
"""Pixels of NudeNet's input."""


def pixels(image: Tensor) -> Any:
    """An image (3, h, w) in [0, 1] as 8 bits (h, w, 3) in the order blue, green, red that OpenCV's readers take."""
    whole = (image.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(whole.flip(0).permute(1, 2, 0).cpu().numpy())


@cache
def reader() -> Any:
    """RapidOCR, loaded once a process."""
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error", "Det.limit_type": "max", "Det.limit_side_len": 960})


def read(image: Tensor) -> str:
    """The text in an image (3, h, w) in [0, 1], line by line, "" where there is none."""
    return "".join(reader()(pixels(image)).txts or ())


def plain(text: str) -> str:
    """Without spaces, in lower case."""
    return text.replace(" ", "").lower()


@dataclass(frozen=True)
class Ocr(Told):
    """How well asked words can be read.

    Attributes:
        words: what is asked of prompts that ask for no words themselves.
        metadata: of prompts, whose ``text`` is what is to be read.
    """

    words: str | None = None
    name: str = "ocr"
    differentiable: bool = False
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def asked(self, prompt: str, told: Mapping[str, Any]) -> str:
        """The words that a prompt asks for, as they are compared. Raises TiltingError where there are none."""
        quoted = prompt.split('"')
        own = told.get("text") or (quoted[1] if len(quoted) > 2 else self.words)
        if not (isinstance(own, str) and plain(own)):
            hint = 'put them in double quotes, as in a sign that says "OPEN", or give ocr:WORDS'
            raise TiltingError(f"the prompt {prompt!r} asks for no words to read: {hint}")
        return plain(own)

    def score(self, images: Tensor, prompts: list[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        from rapidfuzz.distance import Levenshtein

        values = []
        for image, prompt, more in zip(images, prompts, metadata, strict=True):
            words, seen = self.asked(prompt, more), plain(read(image))
            edits = 0 if words in seen else min(Levenshtein.distance(seen, words), len(words))
            values.append(1 - edits / len(words))
        return torch.tensor(values, dtype=torch.float32, device=images.device)


@REWARDS.declare(
    "ocr",
    "how legibly it shows the requested words",
    "1 - edits per letter",
    argument=Argument("WORDS", files=False),
    extra=("ocr", "rapidocr", "onnxruntime", "rapidfuzz"),
)
def ocr(words: str | None = None) -> Ocr:
    """How well the words in the prompt's double quotes can be read in the picture.

    Args:
        words: what is asked of prompts without quotes.

    Raises:
        TiltingError: the extra is not installed.
    """
    installed(REWARDS["ocr"])
    return Ocr(words, "ocr" if words is None else f"ocr:{words}")


@cache
def detector() -> Any:
    """NudeNet's network, loaded once a process."""
    import nudenet
    import onnxruntime

    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    file = Path(nudenet.__file__).parent / "320n.onnx"
    return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def blob(image: Tensor) -> Any:
    """What NudeNet is fed of an image (3, h, w) in [0, 1]: its bytes on black to the right and below, resized to a square, as
    blue, green and red, which its own reading of a file comes to."""
    import cv2

    whole = pixels(image)
    side = max(whole.shape[:2])
    square = np.pad(whole, ((0, side - whole.shape[0]), (0, side - whole.shape[1]), (0, 0)))
    return cv2.resize(square, (SIDE, SIDE)).transpose(2, 0, 1)[None].astype(np.float32) / 255


@dataclass(frozen=True)
class Nsfw(Scorer):
    """How surely nobody is bare; the prompt has no part in it."""

    name: str = "nsfw"
    differentiable: bool = False

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        session, values = detector(), []
        for image in images:
            (seen,) = session.run(None, {session.get_inputs()[0].name: blob(image)})
            values.append(-float(seen[0, [4 + k for k in EXPOSED.values()]].max()))
        return torch.tensor(values, dtype=torch.float32, device=images.device)


@REWARDS.declare("nsfw", "absence of nudity (NudeNet)", "-largest score", extra=("nsfw", "nudenet", "onnxruntime"))
def nsfw() -> Nsfw:
    """The negative of the largest score of bare skin that NudeNet finds.

    Raises:
        TiltingError: the extra is not installed.
    """
    installed(REWARDS["nsfw"])
    return Nsfw()
