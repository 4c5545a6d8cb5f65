"""Folders of models that load and are wrong: each is refused, none draws noise in silence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tilting as tl
from tilting.cli import main
from tilting.errors import TiltingError


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model"


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_not_finite_in_any_part(part, value, copy):
    file = next((copy / part).glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(TiltingError, match=rf"the {part} of the model .* holds NaN or infinity in its tensor"):
        tl.load(str(copy))


@pytest.mark.parametrize("kind", ["noise", "v-prediction", "", None, 3])
def test_an_unknown_prediction_type(kind, copy, tmp_path, capsys):
    change(copy / "scheduler" / "scheduler_config.json", prediction_type=kind)
    assert main_said(capsys, copy, tmp_path).count("prediction_type") == 1


def main_said(capsys, model, place):
    assert main(["generate", "a fox", "--steps", "2", "--model", str(model), "--quiet", "--out", str(place / "out")]) == 2
    said = capsys.readouterr().err
    last = said.replace("\r", "\n").splitlines()[-1]  # bars of loading come before it
    assert not (place / "out").exists() and "Traceback" not in said
    assert last.startswith("tilting: ") and len(last) < 320
    return last


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_part_of_another_class_than_the_index_says(part, copy):
    other = {"unet": "UNet2DModel", "vae": "AutoencoderTiny"}[part]
    change(copy / part / "config.json", _class_name=other)
    with pytest.raises(TiltingError, match=f"says {part} is a .* its own config.json a {other}"):
        tl.load(str(copy))


def test_a_unet_that_reads_other_tokens_than_the_encoder_gives(copy):
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel.from_pretrained(copy / "unet")
    shutil.rmtree(copy / "unet")
    UNet2DConditionModel.from_config({**net.config, "cross_attention_dim": 24}).save_pretrained(copy / "unet")
    with pytest.raises(TiltingError, match=r"the unet of .* does not fit its model_index\.json"):
        tl.load(str(copy))


@pytest.mark.parametrize(
    "kind", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "NoPipeline", 3, None]
)
def test_a_pipeline_of_another_class(kind, copy, tmp_path, capsys):
    change(copy / "model_index.json", _class_name=kind)
    main_said(capsys, copy, tmp_path)


@pytest.mark.parametrize("what", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
@pytest.mark.parametrize("how", ["gone", "empty", "text", "deep"])
def test_a_part_that_is_missing_or_broken(what, how, copy, tmp_path, capsys):
    if how == "gone":
        shutil.rmtree(copy / what)
    else:
        for file in (copy / what).iterdir():
            file.write_bytes({"empty": b"", "text": b"no model", "deep": b"[" * 5000}[how])
    main_said(capsys, copy, tmp_path)


def test_the_whole_one_draws(copy):
    assert tl.generate(tl.load(str(copy)), "a fox", steps=2).images.isfinite().all()
    assert torch.is_tensor(tl.generate(tl.load("pocket"), "a fox", steps=2).images)
