"""A look decoder: it decodes estimates and carries gradients, and never what is kept; what it is off by is told."""

from __future__ import annotations

import json

import pytest
import torch

import tilting as tl
from support import today
from support.tiny_pipelines import make, scrambled
from tilting.cli import main
from tilting.config.generate import resolve
from tilting.errors import TiltingError
from tilting.features.packaged import POCKET
from tilting.models.look_decoder import find_look_decoder
from tilting.models.pipeline import Pipeline
from tilting.training.trainer import make_trainer

OWN = str(POCKET / "vae")
CODEX = tl.presets.codex(particles=2, block=1, gradient_block=1, window=(1, 0))


def bright(images, prompts):
    return images.mean((1, 2, 3))


bright.differentiable = True


def small(folder, channels, blocks):
    """The folder of an AutoencoderTiny of random weights: 2 ** (blocks - 1) pixels to a latent's side."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(9)
    own = {"block_out_channels": (4,) * blocks, "num_encoder_blocks": (1,) * blocks, "num_decoder_blocks": (1,) * blocks}
    sides = {f"{side}coder_block_out_channels": own["block_out_channels"] for side in ("en", "de")}
    told = {name: own[name] for name in ("num_encoder_blocks", "num_decoder_blocks")}
    scrambled(AutoencoderTiny(latent_channels=channels, **sides, **told)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return small(tmp_path_factory.mktemp("tiny"), 12, 4)


def test_a_model_that_looks_with_its_own_decoder_is_itself():
    """The oracle: gradients, selections and pictures are those without, but for rounding, and nothing is off."""
    drawn = [tl.generate(model, ["a fox"], bright, CODEX, steps=3) for model in (tl.load(), tl.load(look_decoder=OWN))]
    assert torch.allclose(drawn[0].images, drawn[1].images, atol=1e-4)
    assert abs(drawn[1].manifest["summary"]["look_bias"]) < 1e-5 and "look_bias" not in drawn[0].manifest["summary"]
    assert drawn[1].manifest["summary"]["decodes"] == drawn[0].manifest["summary"]["decodes"] + 1  # to know what it is off by


def test_estimates_are_decoded_by_the_small_one_and_what_is_kept_by_the_models_own(tiny):
    model, plain = tl.load(look_decoder=tiny), tl.load()
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    seen = model.looker(["a fox", "an owl"])(x, torch.arange(2))
    by_hand = (model.look_decoder.vae.decoder(x) / 2 + 0.5).clamp(0, 1)  # TAESD: the loop's latents to [-1, 1]
    assert torch.allclose(seen, by_hand, atol=1e-5)
    assert torch.autograd.grad(seen.sum(), x)[0].abs().sum() > 0
    asked = []

    def watched(images, prompts):
        asked.append(images.detach().clone())
        return images.mean((1, 2, 3))

    found = tl.generate(model, ["a fox"], watched, tl.presets.code(particles=2, block=1), steps=2)
    record = found.manifest["images"][0]
    assert record["reward"] == pytest.approx(found.images[0].mean().item(), abs=1e-6)
    assert record["look"] == pytest.approx(asked[-1].mean().item(), abs=1e-6) != record["reward"]
    assert found.manifest["summary"]["look_bias"] == pytest.approx(record["look"] - record["reward"])
    base = [tl.generate(one, ["a fox"], bright, steps=2).images for one in (model, plain)]
    assert torch.equal(*base)


@pytest.mark.parametrize("name", ["sd15_controlnet", "flux", "sd3", "qwen", "wan", "ltx", "sana", "cogvideox"])
def test_any_pipeline_looks_through_its_own_tail(name, tmp_path):
    """Loading asks whether what the tail hands its decoder is brought back to the loop's latents; then the autoencoder itself,
    told as a look decoder, decodes as before."""
    pipe, told = make(name)
    told.pop("negative_prompt", "")
    pipe.vae.save_pretrained(tmp_path)
    model = Pipeline(pipe, name, 2, inputs=told)
    x, rows = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1)), torch.zeros(1, dtype=torch.long)
    plain = model.decoder(["a fox"])(x, rows)
    looking = tl.load(pipe, look_decoder=str(tmp_path), **told)
    x = x.requires_grad_()
    seen = looking.looker(["a fox"])(x, rows)
    assert torch.allclose(seen, plain, atol=1e-4)
    assert torch.autograd.grad(seen.sum(), x)[0].abs().sum() > 0


def test_a_tail_of_another_scale_is_refused(tmp_path, monkeypatch):
    pipe, told = make("sd15")
    pipe.vae.save_pretrained(tmp_path)
    before = Pipeline.before_decoder
    monkeypatch.setattr(Pipeline, "before_decoder", lambda self, x: 2 * before(self, x))
    with pytest.raises(TiltingError, match=r"how .* scales its latents for a decoder is not known"):
        tl.load(pipe, look_decoder=str(tmp_path), **told)


def test_training_goes_through_it_and_samples_do_not(tiny):
    model = tl.load(look_decoder=tiny)
    trainer = make_trainer(model, ["a fox"], bright, "draft-lv", steps=2, batch_size=1, rank=2)
    batch = trainer.batches(0, {})
    x = torch.randn(1, *model.latent_shape)
    with torch.no_grad():
        assert torch.allclose(
            batch.value(x, torch.zeros(1, dtype=torch.long)),
            bright(model.looker(["a fox"])(x, torch.zeros(1, dtype=torch.long)), []),
        )


@pytest.mark.parametrize(
    ("make_folder", "said"),
    [
        (lambda p: small(p, 4, 4), "4 channels of latents, the model's own 12"),
        (lambda p: small(p, 12, 2), "2 pixels to a latent's side, the model's own 8"),
        (lambda p: str(p / "none"), "there is no look decoder"),
        (lambda p: str(POCKET / "unet"), "is a UNet2DConditionModel"),
        (lambda p: "auto", "no look decoder is known for 'pocket'"),
    ],
)
def test_what_is_no_decoder_of_its_latents_is_refused_before_a_weight_is_read(make_folder, said, tmp_path, capsys):
    words = ["generate", "a fox", "--look-decoder", make_folder(tmp_path), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_auto_is_the_folder_beside_or_the_known_one(tmp_path):
    folder = today.write("sdxl", tmp_path / "xl")
    with pytest.raises(TiltingError, match="madebyollin/taesdxl"):
        find_look_decoder(str(folder), "auto")
    small(folder / "look_decoder", 4, 2)
    assert find_look_decoder(str(folder), "auto") == str(folder / "look_decoder")


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("PixArtSigmaPipeline", "taesdxl"),
        ("PixArtSigmaPAGPipeline", "taesdxl"),
        ("PixArtAlphaPipeline", "taesd"),
        ("StableDiffusionXLImg2ImgPipeline", "taesdxl"),
        ("StableDiffusionInpaintPipeline", "taesd"),
        ("StableDiffusion3Pipeline", "taesd3"),
        ("FluxKontextPipeline", "taef1"),
    ],
)
def test_the_known_one_is_of_the_models_own_latents(kind, known, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind, "vae": ["diffusers", "AutoencoderKL"]}))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(TiltingError, match=f"madebyollin/{known}\\b"):
        find_look_decoder(str(tmp_path), "auto")


def test_a_manifest_says_which_and_a_run_goes_on_with_that_alone(tiny, tmp_path, capsys):
    words = ["generate", "a fox", "--steps", "2", "--method", "code", "--particles", "2", "--out", str(tmp_path / "a")]
    assert main([*words, "--look-decoder", tiny, "--vae-slicing"]) == 0
    assert "looks see" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["config"]["look-decoder"] == tiny and len(manifest["config"]["look-decoder-sha256"]) > 8
    assert main([*words, "--look-decoder", tiny]) == 0  # slicing changes nothing that is seen
    assert main(words) == 2
    assert "another look-decoder" in capsys.readouterr().err
    assert "look-decoder" not in resolve({"prompts": ["a fox"]}).mapping()
