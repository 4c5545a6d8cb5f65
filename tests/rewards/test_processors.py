"""Image processors of transformers: of every class and every field, our pixels are its own, or it is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.learned import save_classifier, save_processor
from tilting.errors import TiltingError
from tilting.features.checkpoints import pixels_in
from tilting.features.classifier import Body, ImageClassifier
from tilting.features.pixels import ASIDE, FOLLOWED, followed, pixels_of

SIZES = [(40, 90), (131, 97), (300, 301)]
TYPES = ("CLIPImageProcessor", "ViTImageProcessor", "ConvNextImageProcessor", "MobileViTImageProcessor")


def classes() -> list[str]:
    """Every image processor that transformers knows by a model's name, without torchvision."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    names = set()
    for kinds in IMAGE_PROCESSOR_MAPPING_NAMES.values():
        names |= set(kinds.values() if isinstance(kinds, dict) else kinds if isinstance(kinds, tuple | list) else [kinds])
    return sorted(str(name) for name in names if name)


def made(name: str, **fields: Any) -> Any:
    import transformers

    try:
        return getattr(transformers, name)(**fields)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        pytest.skip(f"{name} is not to be had here: {str(error).splitlines()[0][:60]}")


def read(ask: Callable[[], Any]) -> tuple[Any, str]:
    """What is read, or None and the sentence of the refusal."""
    try:
        return ask(), ""
    except TiltingError as error:
        return None, str(error)


def far(processor: Any, pixels: Any, size: tuple[int, int]) -> float:
    """Levels of 255 between ours and the processor's own, of a picture that the check at loading has not seen."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(40, 215, (6, 6, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    picture = Image.fromarray(np.clip(np.array(coarse) + rng.integers(-20, 20, (*size, 3)), 0, 255).astype(np.uint8))
    want = torch.as_tensor(processor(images=[picture], return_tensors="pt")["pixel_values"])
    got = pixels(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255)
    assert got.shape == want.shape
    return ((got - want) * pixels.std).abs().max().item() * 255


@pytest.mark.parametrize("name", classes())
def test_every_class_is_followed_or_refused(name):
    processor = made(name)
    pixels, said = read(lambda: followed(processor, "mine"))
    assert "'mine'" in said if pixels is None else all(far(processor, pixels, size) < 5 for size in SIZES)


@pytest.mark.parametrize("name", ["CLIP", "ViT", "ConvNext", "Bit", "Siglip", "Blip", "ChineseCLIP"])
def test_the_usual_classes_are_followed(name):
    import transformers

    kind = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    assert followed(kind(), "mine").size[0] >= 224


FIELDS = {
    "do_flip_channel_order": True,
    "do_normalize": False,
    "do_center_crop": False,
    "do_rescale": False,
    "do_resize": False,
    "do_pad": True,
    "do_grayscale": True,
    "do_thumbnail": True,
    "do_align_long_axis": True,
    "do_color_quantize": True,
    "do_crop_margin": True,
    "do_affine_transform": True,
    "resample": 2,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "include_top": True,
    "crop_pct": 0.5,
    "size_divisor": 32,
    "pad_size": {"height": 300, "width": 300},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": 0.5,
    "crop_size": {"height": 128, "width": 96},
    "size": {"shortest_edge": 256},
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_honoured_or_refused_by_name(tmp_path, kind, field):
    """A field that a class does not know is in the file all the same; what a class does with it is the truth."""
    import transformers

    square = {"height": 128, "width": 128}
    asked = square if kind.startswith("ViT") else {"shortest_edge": 128}
    more = {"crop_size": square, "do_center_crop": True} if kind[:4] in ("CLIP", "Mobi") else {}
    save_processor(tmp_path, kind, **{"size": asked, **more, field: FIELDS[field]})
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels, said = read(lambda: pixels_in(tmp_path))
    if pixels is None:
        assert repr(str(tmp_path)) in said and any(word in said for word in (field, "size", type(processor).__name__))
    else:
        assert all(far(processor, pixels, size) < 5 for size in SIZES)


def test_the_field_is_what_the_refusal_names():
    square = {"height": 32, "width": 32}
    for field, value in FIELDS.items():
        if field not in FOLLOWED | ASIDE:
            with pytest.raises(TiltingError, match=f"a crop and a normalisation: {field} "):
                pixels_of({"size": square, field: value}, "mine")
    assert pixels_of({"size": square, "do_pad": False, "crop_pct": None, "_private": 1}, "mine").size == (32, 32)


def test_channels_are_flipped_for_a_mobilevit(tmp_path):
    """Pure red is [0, 0, 1] to it, and not [1, -1, -1]."""
    save_classifier(tmp_path)
    mobile = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    save_processor(tmp_path, "MobileViTImageProcessor", **mobile, do_normalize=False, do_flip_channel_order=True, resample=2)
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 50, 50)
    for network in (ImageClassifier(tmp_path), Body(tmp_path)):
        assert network.pixels(red)[0, :, 16, 16].tolist() == [0, 0, 1]


def test_a_step_that_no_field_says_is_refused_in_every_place_that_reads_a_processor(tmp_path):
    """LeViT resizes to 256 / 224 of what its size says."""
    from tilting.features.clip import ClipEmbedder
    from tilting.features.fitted import EmbeddingMlp
    from tilting.features.packaged import POCKET_CLIP
    from tilting.rewards.spec import build, parse_specs

    save_classifier(tmp_path / "net")
    clip = tmp_path / "clip"
    clip.mkdir()
    for file in POCKET_CLIP.iterdir():
        (clip / file.name).write_bytes(file.read_bytes())
    for folder, side in ((tmp_path / "net", 32), (clip, 64)):
        square = {"height": side, "width": side}
        save_processor(folder, "LevitImageProcessor", {"shortest_edge": side}, crop_size=square, do_center_crop=True)
    places = {
        "classify": lambda: build(parse_specs([f"classify:{tmp_path / 'net'}#owl"])),
        "--kind": lambda: Body(tmp_path / "net"),
        "clip": lambda: ClipEmbedder(clip),
        "--embedder": lambda: EmbeddingMlp(2, str(clip)),
    }
    for place, ask in places.items():
        with pytest.raises(TiltingError, match=r"LevitImageProcessor.* has steps of its own"):
            print(place, ask())
