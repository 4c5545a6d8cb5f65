"""`jpeg` and `jpeg-up`: the size of the real file, a black box."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from tilting.features.images import check_images

QUALITY = 95


def kilobytes(image: Tensor, quality: int = QUALITY) -> float:
    """The size of one image (3, h, w) in [0, 1] as a JPEG file, in kB of 1000 bytes (PIL's 4:2:0, round to bytes)."""
    pixels = (image.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    return file.tell() / 1000


@dataclass(frozen=True)
class Jpeg:
    """r(x) = -kB of the JPEG file at quality 95, or +kB: (in)compressibility as DDPO has it (Black et al. 2023, 4.1).

    Attributes:
        incompressible: reward large files instead of small ones.
        differentiable: False.
    """

    incompressible: bool = False
    differentiable: bool = False

    @property
    def name(self) -> str:
        """ "jpeg", or "jpeg-up" for its negation."""
        return "jpeg-up" if self.incompressible else "jpeg"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1]; prompts are only counted -> (b,) kB. Raises what `check_images` raises."""
        check_images(images, prompts)
        sign = 1 if self.incompressible else -1
        return torch.tensor([sign * kilobytes(x) for x in images], dtype=torch.float32, device=images.device)


def jpeg(incompressible: bool = False) -> Jpeg:
    """-kB of the file at quality 95 ("jpeg"), or its negation ("jpeg-up")."""
    return Jpeg(incompressible)
