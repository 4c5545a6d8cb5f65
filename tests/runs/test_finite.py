"""Pictures that are not finite: the part that made the first such number is named, nothing of the group is written, none is
taken for finished."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import tilting as tl
from support.commands import manifest
from support.small import write_small
from support.tiny_pipelines import make
from tilting.cli import main
from tilting.errors import TiltingError

NAN, INF = float("nan"), float("inf")
WAY = "in fp16: use precision bf16 or fp32"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("finite") / "small")


def last(network):
    return list(network.parameters())[-1]


def spoil(part, value=NAN):
    """What turns a part of a model to no number."""

    def change(model):
        with torch.no_grad():
            if part == "text":
                last(model.text_encoder).fill_(value)
            elif part == "network":
                model.unet.conv_out.bias.fill_(value)
            elif part == "autoencoder":
                model.vae.decoder.conv_out.bias.fill_(value)
            elif part == "black":
                model.vae.decoder.conv_out.weight.zero_()
                model.vae.decoder.conv_out.bias.fill_(-2.0)
            elif part == "overflow":
                model.unet.conv_in.weight.mul_(1e5)
            elif part == "text overflow":
                list(model.text_encoder.parameters())[-2].fill_(6e4)  # the scale of its last norm
        return model

    return change


@pytest.mark.parametrize(
    ("part", "value", "precision", "said"),
    [
        ("text", NAN, "fp32", ["the text encoder made", "weights hold NaN"]),
        ("text overflow", 0, "fp16", ["the text encoder made", WAY]),
        ("network", NAN, "fp32", ["the network made", "at step 1", "conv_out.bias"]),
        ("network", INF, "fp32", ["the network made", "in fp32"]),
        ("overflow", 0, "fp16", ["the network made", "at step 1", WAY]),
        ("autoencoder", NAN, "fp32", ["the autoencoder made", "weights hold NaN"]),
        ("autoencoder", INF, "fp32", ["the autoencoder made", "in fp32"]),
        ("autoencoder", -INF, "fp16", ["the autoencoder made", "in fp32"]),
    ],
)
@pytest.mark.parametrize("reward", [None, "jpeg", "color:red"])
def test_the_part_that_made_the_first_is_named_and_nothing_is_written(
    small, tmp_path, monkeypatch, capsys, part, value, precision, said, reward
):
    from tilting.models import load

    words = ["generate", "a fox", "--model", str(small), "--images", "2", "--batch-size", "1", "--steps", "2", "--eta", "0"]
    words += ["--precision", precision, "--quiet", "--out", str(tmp_path / "out")]
    words += ["--reward", reward, "--method", "bon", "--particles", "2"] if reward else []
    monkeypatch.setattr("tilting.generation.run.load", lambda *given, **how: spoil(part, value)(load(*given, **how)))
    for _ in range(2):  # and the same words again find nothing that was finished
        assert main(words) == 2
        err = capsys.readouterr().err
        assert "image 0 of 'a fox', seed 0 is not finite" in err and err.count("tilting: image") == 1
        for words_said in said:
            assert words_said in err
        assert manifest(tmp_path / "out")["images"] == []
        assert not list((tmp_path / "out").rglob("*.png"))
    monkeypatch.undo()
    assert main(words) == 0
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 2


def test_latents_that_are_no_numbers_and_a_picture_of_a_group(small):
    model = tl.load(str(small))
    latents = torch.randn(3, *model.latent_shape)
    latents[1, 0, 0, 0] = NAN
    with pytest.raises(TiltingError, match=r"image 1 of 'a fox'.*the latents it began at made the first.*given so"):
        tl.generate(model, "a fox", steps=2, images=3, latents=latents, batch_size=4)


def test_a_reward_and_its_gradient_are_named(small):
    model = tl.load(str(small))

    class Broken:
        name, differentiable = "broken", True

        def __call__(self, images, prompts):
            return images.mean((1, 2, 3)) * NAN

    with pytest.raises(TiltingError, match=r"'broken' gave nan"):
        tl.generate(model, "a fox", Broken(), "bon", steps=2)

    class Slope(Broken):
        def __call__(self, images, prompts):
            return (images - images.detach()).sum((1, 2, 3)).sqrt() * 0 + 1

    with pytest.raises(TiltingError, match=r"gradient of the reward is not finite"):
        tl.generate(model, "a fox", Slope(), "dps", steps=2)


@pytest.mark.parametrize(
    ("name", "part", "said"),
    [
        ("sdxl", "text_encoder_2", "the text encoder made"),
        ("sd15_controlnet", "controlnet", "the weights of its controlnet hold NaN"),
        ("sd15_ip", "image_encoder", "the weights of its image_encoder hold NaN"),
        ("sd15_img2img", "vae", "the autoencoder made"),
        ("kontext", "vae", "the weights of its vae hold NaN"),
        ("wan22", "transformer_2", "the network made"),
    ],
)
def test_a_part_beside_the_usual_ones_is_named_too(name, part, said):
    pipe, told = make(name)
    network = pipe.components[part]
    next((network.encoder if part == "vae" else network).parameters()).data.fill_(NAN)
    with pytest.raises(TiltingError, match=f"image 0 of 'a fox', seed 0 is not finite: .*{said}"):
        tl.generate(tl.load(pipe, **told), "a fox", steps=2)


def test_what_is_finite_is_drawn_once(small):
    model, calls = tl.load(str(small)), []
    model.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    assert tl.generate(model, "a fox", steps=2).images.isfinite().all()
    assert len(calls) == 2


@pytest.mark.parametrize("part", ["black", "autoencoder"])
def test_a_black_picture_of_an_earlier_version_is_drawn_again_once(small, tmp_path, monkeypatch, capsys, part):
    """Which wrote NaN as black, and its records into the manifest."""
    from tilting.models import load

    out = tmp_path / "out"
    words = ["generate", "a fox", "--model", str(small), "--images", "2", "--steps", "2", "--quiet", "--out", str(out)]
    assert main(words) == 0
    told, first = manifest(out), out / "images" / "00000.png"
    (out / "manifest.json").write_text(json.dumps(told))  # the records are in it
    (out / "images.jsonl").unlink()
    Image.new("RGB", Image.open(first).size).save(first)
    kept = (out / "images" / "00001.png").stat().st_mtime_ns
    monkeypatch.setattr("tilting.generation.run.load", lambda *given, **how: spoil(part)(load(*given, **how)))
    assert main(words) == (0 if part == "black" else 2)
    assert ("image 0 of 'a fox', seed 0 is not finite" in capsys.readouterr().err) == (part != "black")
    whole = ["images/00000.png", "images/00001.png"]
    assert [one["file"] for one in manifest(out)["images"]] == (whole if part == "black" else whole[1:])
    assert (out / "images" / "00001.png").stat().st_mtime_ns == kept
    drawn = first.stat().st_mtime_ns
    assert main(words) == (0 if part == "black" else 2)  # a picture that is black by itself is finished now
    assert first.stat().st_mtime_ns == drawn
