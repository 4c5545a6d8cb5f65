"""Whatever diffusers' pipeline reads of a folder is read here, or refused by name: parts of other classes, numbers in their
configurations, parts that are missing or that nobody needs."""

from __future__ import annotations

import json
import shutil

import diffusers
import pytest
import torch

import tilting as tl
from support import today
from support.tiny_pipelines import BLOCKS, CROSS, picture, scrambled, sd, unet
from tilting.errors import TiltingError
from tilting.models.adapter import Adapter
from tilting.models.pipeline import Pipeline

PROMPTS = ["a fox on a blue background", "an owl"]
STEPS = 4


def written(pipe, folder):
    pipe.save_pretrained(folder)
    return str(folder)


def differ(folder, cfg=4.0, steps=STEPS, **told):
    """How far our images are from those of diffusers' own pipeline of the folder, and what we loaded it as."""
    model = tl.load(folder, device="cpu")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **{"safety_checker": None} if told.pop("plain", False) else {})
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(steps)
    first = getattr(pipe.scheduler, "sigmas", [None])[0]  # some begin a little below the noise that they were trained with
    scale = 1.0 if first is None else float((first**2 + 1) ** 0.5 / pipe.scheduler.init_noise_sigma)
    want = pipe(
        PROMPTS, latents=latents * scale, num_inference_steps=steps, guidance_scale=cfg, output_type="pt", **told
    ).images
    got = tl.generate(model, PROMPTS, steps=steps, cfg=cfg, eta=0.0, latents=latents).images
    assert want.std() > 0.03
    return (got - want).abs().max().item(), model


def xl(**parts):
    own = today.sdxl()
    scrambled(own.unet)
    kept = {k: v for k, v in own.components.items() if k not in ("image_encoder", "feature_extractor")}
    return diffusers.StableDiffusionXLPipeline(**{**kept, **parts}, add_watermarker=False)


def vae_of(**numbers):
    own = today.vae(4)
    made = diffusers.AutoencoderKL.from_config({**own.config, **numbers})
    made.load_state_dict(own.state_dict())
    return made.eval()


def conditioned():
    """A UNet that is told its scale, as consistency models are."""
    return unet(time_cond_proj_dim=8)


def tiny_vae():
    torch.manual_seed(0)
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return diffusers.AutoencoderTiny(latent_channels=4, **channels, **blocks).eval()


def oblong():
    torch.manual_seed(0)
    sizes = {"sample_size": [8, 12], "cross_attention_dim": 12, "attention_head_dim": 2}
    return scrambled(diffusers.UNet2DConditionModel(**sizes, **BLOCKS, **CROSS))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: xl(vae=vae_of(latents_mean=[0.3, -0.2, 0.1, 0.4], latents_std=[1.5, 0.8, 1.1, 0.9])), {}),
        (lambda: xl(scheduler=diffusers.DDIMScheduler(clip_sample=True)), {}),
        (lambda: sd(network=conditioned()), {}),
        (lambda: sd(vae=tiny_vae()), {}),
        (lambda: sd(network=oblong()), {}),
        (lambda: sd(), {}),
        (lambda: xl(), {}),
    ],
    ids=["latents_mean", "clip_sample", "time_cond_proj_dim", "tiny-vae", "sample_size", "plain", "plain-xl"],
)
def test_what_a_folders_parts_say_is_done(made, told, tmp_path):
    far, model = differ(written(made(), tmp_path), **told)
    assert far < 2e-5
    assert model.image_shape == (3, *(2 * side for side in model.latent_shape[1:]))


def test_plain_folders_stay_with_their_adapters_and_others_go_through_their_own_call(tmp_path):
    assert isinstance(tl.load(written(sd(), tmp_path / "plain"), device="cpu"), Adapter)
    assert isinstance(tl.load(written(sd(vae=tiny_vae()), tmp_path / "tiny"), device="cpu"), Pipeline)


def test_a_picture_to_start_from_is_encoded_by_any_autoencoder(tmp_path):
    model = tl.load(written(sd(vae=tiny_vae()), tmp_path), device="cpu")
    drawn = tl.generate(model, "a fox", image=picture(16), steps=4, strength=0.5)
    assert drawn.images.shape == (1, 3, 16, 16)
    from tilting.config.picture import read_picture

    pixels = read_picture(picture(16), 16, 16)
    with torch.no_grad():
        latents = model.encode(pixels)
        own = model.vae.encode(pixels * 2 - 1).latents
    assert latents.allclose(own * model.vae.config.scaling_factor, atol=1e-5)


def edited(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_tokenizer_that_does_not_say_its_length(tmp_path):
    written(sd(), tmp_path)
    for file in ("tokenizer/tokenizer_config.json",):
        content = json.loads((tmp_path / file).read_text())
        content.pop("model_max_length", None)
        (tmp_path / file).write_text(json.dumps(content))
    model, other = tl.load(tmp_path, device="cpu"), tl.load(written(sd(), tmp_path / "whole"), device="cpu")
    assert model.tokenizer.model_max_length == model.text_encoder.config.max_position_embeddings
    drawn = [tl.generate(one, PROMPTS, steps=3, eta=0.0, seed=1).images for one in (model, other)]
    assert drawn[0].equal(drawn[1])


def test_parts_that_nobody_needs_and_parts_that_are_not_there(tmp_path):
    written(sd(), tmp_path)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def drawn():
        return tl.generate(tl.load(tmp_path, device="cpu"), "a fox", steps=3, eta=0.0, latents=latents).images

    want = drawn()
    edited(tmp_path, "model_index.json", spare=["diffusers", "AutoencoderKL"], safety_checker=["stable_diffusion", "X"])
    assert drawn().equal(want)
    shutil.rmtree(tmp_path / "vae")
    with pytest.raises(TiltingError, match="is not a whole pipeline: it has no vae"):
        tl.load(tmp_path, device="cpu")


def test_a_text_encoder_saved_in_half_precision(tmp_path):
    pipe = sd()
    pipe.text_encoder.to(torch.float16)
    written(pipe, tmp_path)
    model = tl.load(tmp_path, device="cpu")
    assert next(model.text_encoder.parameters()).dtype == torch.float32
    told = tl.load(tmp_path, device="cpu", guidance_rescale=0.0)
    assert {p.dtype for p in told.parameters()} == {torch.float32}
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = [m.denoiser(PROMPTS, 4.0)(x, m.schedule.grid(4)[1], torch.arange(2)).eps for m in (model, told)]
    assert seen[0].allclose(seen[1], atol=1e-5)


OTHER = {
    "num_train_timesteps": 500, "beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": True,
    "set_alpha_to_one": True, "steps_offset": 0, "prediction_type": "v_prediction", "thresholding": True,
    "timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "trained_betas": [0.00002 * i for i in range(1, 1001)],
    "clip_sample_range": 0.5, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0, "use_karras_sigmas": True,
    "use_exponential_sigmas": True, "use_beta_sigmas": True, "interpolation_type": "log_linear", "sigma_min": 0.1,
    "sigma_max": 10.0, "timestep_type": "continuous", "final_sigmas_type": "sigma_min", "shift": 5.0,
    "use_dynamic_shifting": True, "base_shift": 0.7, "max_shift": 1.4, "base_image_seq_len": 128, "max_image_seq_len": 2048,
    "invert_sigmas": True, "shift_terminal": 0.1, "time_shift_type": "linear", "stochastic_sampling": True,
}  # fmt: skip
"""Another value of every field of a scheduler's configuration."""


def fields_of(kind):
    return [(kind.__name__, name) for name in kind().config if not name.startswith("_")]


@pytest.mark.parametrize(("kind", "field"), [*fields_of(diffusers.DDIMScheduler), *fields_of(diffusers.EulerDiscreteScheduler)])
def test_every_field_of_a_schedulers_configuration_is_honoured_or_refused(kind, field, tmp_path):
    own = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
    own |= {"steps_offset": 1, **({"clip_sample": False, "set_alpha_to_one": False} if kind == "DDIMScheduler" else {})}
    assert field in OTHER, f"a new field: say another value of {field}"
    if field == "clip_sample_range":
        own["clip_sample"] = True
    if field in ("beta_schedule", "trained_betas"):
        own = {k: v for k, v in own.items() if k == "clip_sample" or not k.startswith("beta")}
    scheduler = getattr(diffusers, kind)(**{**own, field: OTHER[field]})
    folder = written(sd(scheduler=scheduler), tmp_path)
    if field == "thresholding" and kind == "DDIMScheduler":
        with pytest.raises(TiltingError, match="with thresholding"):
            tl.load(folder, device="cpu")
        return
    assert differ(folder)[0] < 2e-5
