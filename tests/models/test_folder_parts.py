"""Whatever diffusers' pipeline reads of a folder is read here, or refused by name: parts of other classes, numbers in their
configurations, parts that are missing or that nobody needs."""

from __future__ import annotations

import inspect
import json
import shutil

import diffusers
import pytest
import torch

import tilting as tl
from support import today
from support.tiny_pipelines import BLOCKS, CROSS, picture, scrambled, sd, unet
from tilting.errors import TiltingError

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
    flow = "FlowMatch" in type(pipe.scheduler).__name__
    if not flow:
        pipe.scheduler.set_timesteps(steps)
    # some begin a little below the noise that they were trained with
    first = None if flow else getattr(pipe.scheduler, "sigmas", [None])[0]
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


UNET = {
    "sample_size": 12, "in_channels": 8, "out_channels": 8, "center_input_sample": True, "flip_sin_to_cos": False,
    "freq_shift": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "only_cross_attention": True, "block_out_channels": (16, 8), "layers_per_block": 2, "downsample_padding": 0,
    "mid_block_scale_factor": 2, "dropout": 0.5, "act_fn": "gelu", "norm_num_groups": 2, "norm_eps": 0.1,
    "cross_attention_dim": 16, "transformer_layers_per_block": 2, "reverse_transformer_layers_per_block": [2, 1],
    "encoder_hid_dim": 12, "encoder_hid_dim_type": {"encoder_hid_dim": 12, "encoder_hid_dim_type": "text_proj"},
    "attention_head_dim": 4, "dual_cross_attention": True, "use_linear_projection": True, "class_embed_type": "timestep",
    "addition_embed_type": {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, "addition_time_embed_dim": 8,
    "num_class_embeds": 3, "upcast_attention": True, "resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 2.0, "time_embedding_type": "fourier", "time_embedding_dim": 24,
    "time_embedding_act_fn": "silu", "timestep_post_act": "silu", "time_cond_proj_dim": 8, "conv_in_kernel": 5,
    "conv_out_kernel": 5, "projection_class_embeddings_input_dim": 24, "attention_type": "gated",
    "class_embeddings_concat": True, "mid_block_only_cross_attention": True, "cross_attention_norm": "layer_norm",
    "addition_embed_type_num_heads": {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
}  # fmt: skip
"""Another value of every field of a UNet's configuration, with what it needs beside it."""
UNBUILT = ("num_attention_heads",)
"""diffusers builds no UNet with another value of this."""
MISFITS = {
    "in_channels": "in_channels = 8, not the 4", "out_channels": "out_channels = 8, not the 4",
    "cross_attention_dim": "reads tokens of 16", "dual_cross_attention": "dual_cross_attention = True",
    "class_embed_type": "class_embed_type = 'timestep'", "num_class_embeds": "num_class_embeds = 3",
    "class_embeddings_concat": "class_embeddings_concat = True", "latent_channels": "in_channels = 4, not the 8",
}  # fmt: skip
"""What plain diffusers fails at in its call is refused when it is loaded."""
VAE = {
    "in_channels": 4, "out_channels": 4, "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), "block_out_channels": (8, 16), "layers_per_block": 2,
    "act_fn": "gelu", "latent_channels": 8, "norm_num_groups": 2, "sample_size": 32, "scaling_factor": 0.3,
    "shift_factor": 0.2, "latents_mean": [0.3, -0.2, 0.1, 0.4], "latents_std": [1.5, 0.8, 1.1, 0.9], "force_upcast": False,
    "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False,
}  # fmt: skip
"""Another value of every field of an autoencoder's configuration."""


def names_of(kind):
    return [name for name in inspect.signature(kind.__init__).parameters if name != "self"]


@pytest.mark.slow
@pytest.mark.parametrize("field", names_of(diffusers.UNet2DConditionModel))
def test_every_field_of_a_unets_configuration_is_honoured_or_refused(field, tmp_path):
    own = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 12, "attention_head_dim": 2}
    if field in UNBUILT:
        with pytest.raises(ValueError, match=field):
            diffusers.UNet2DConditionModel(**{**own, field: 2}, **BLOCKS, **CROSS)
        return
    assert field in UNET, f"a new field: say another value of {field}"
    other = UNET[field] if isinstance(UNET[field], dict) else {field: UNET[field]}
    torch.manual_seed(0)
    network = scrambled(diffusers.UNet2DConditionModel(**{**own, **BLOCKS, **CROSS, **other}))
    drawn_or_refused(written(sd(network=network), tmp_path), field)


def drawn_or_refused(folder, field):
    if field in MISFITS:
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, safety_checker=None)
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            pipe(PROMPTS, num_inference_steps=2, output_type="pt")
        with pytest.raises(TiltingError, match=MISFITS[field]):
            tl.load(folder, device="cpu")
        return
    assert differ(folder, steps=2)[0] < 2e-5


@pytest.mark.parametrize("field", names_of(diffusers.AutoencoderKL))
def test_every_field_of_an_autoencoders_configuration_is_honoured_or_refused(field, tmp_path):
    assert field in VAE, f"a new field: say another value of {field}"
    torch.manual_seed(0)
    own = {name: value for name, value in today.vae(4).config.items() if not name.startswith("_")}
    vae = diffusers.AutoencoderKL(**{**own, field: VAE[field]}).eval()
    drawn_or_refused(written(sd(vae=vae), tmp_path), "" if field in ("in_channels", "out_channels") else field)


@pytest.mark.parametrize("made", [xl, today.sd3], ids=["xl", "sd3"])
@pytest.mark.parametrize("field", ["scaling_factor", "shift_factor", "latents_mean", "latents_std"])
def test_other_pipelines_take_what_they_take_of_an_autoencoder(made, field, tmp_path):
    pipe = made()
    numbers = VAE[field] * (pipe.vae.config.latent_channels // 4) if isinstance(VAE[field], list) else VAE[field]
    pipe.vae.register_to_config(**{field: numbers})
    assert differ(written(pipe, tmp_path), steps=2)[0] < 2e-5


@pytest.mark.parametrize("field", names_of(diffusers.FlowMatchEulerDiscreteScheduler))
def test_every_field_of_a_flows_configuration_is_honoured(field, tmp_path):
    assert field in OTHER, f"a new field: say another value of {field}"
    own = {"shift": 3.0, field: OTHER[field]}
    own |= {"use_dynamic_shifting": True} if field.startswith(("base_", "max_", "time_shift")) else {}
    pipe = today.sd3()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**own)
    folder = written(pipe, tmp_path)
    if field == "stochastic_sampling":  # its noise is random: ours is the method's eta, and without it the plain flow's picture
        model = tl.load(folder, device="cpu")
        edited(tmp_path, "scheduler/scheduler_config.json", stochastic_sampling=False)
        latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        both = (model, tl.load(folder, device="cpu"))
        drawn = [tl.generate(m, PROMPTS, steps=2, eta=0.0, latents=latents).images for m in both]
        assert drawn[0].equal(drawn[1])
        return
    assert differ(folder, steps=2)[0] < 2e-5


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_a_folder_of_one_variant_alone_is_read_and_of_two_refused(shards, tmp_path):
    pipe = sd()
    want = written(pipe, tmp_path / "plain")
    pipe.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size=shards)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = [
        tl.generate(tl.load(folder, device="cpu"), "a fox", steps=2, eta=0.0, latents=latents).images
        for folder in (want, tmp_path / "half")
    ]
    assert drawn[0].equal(drawn[1])
    for file in (tmp_path / "half" / "unet").glob("*.safetensors"):
        file.rename(file.with_name(file.name.replace("fp16", "ema")))
    with pytest.raises(TiltingError, match="of different variants: ema, fp16"):
        tl.load(tmp_path / "half", device="cpu")


def test_of_a_plain_file_and_a_variant_beside_it_the_plain_one_is_read(tmp_path):
    folder = written(sd(), tmp_path)
    sd(network=unet(time_embedding_act_fn="silu")).save_pretrained(tmp_path / "other", variant="fp16")
    shutil.copy(tmp_path / "other/unet/diffusion_pytorch_model.fp16.safetensors", tmp_path / "unet")
    shutil.rmtree(tmp_path / "other")
    assert differ(folder, steps=2)[0] < 2e-5
