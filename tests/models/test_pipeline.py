"""The adapter against diffusers itself, and the promises about randomness, on the shipped model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import tilting as tl
from support.commands import refused
from tilting.cost import cost
from tilting.generation.generate import draw, identities, plan
from tilting.models.words import POCKET

PROMPTS = ["a fox on a blue background, noto style", "an owl"]


@pytest.fixture(scope="module")
def model():
    return tl.load("pocket")


@pytest.mark.parametrize(("steps", "cfg"), [(10, 4.0), (20, 7.5), (10, 1.0)])
def test_unguided_images_equal_the_diffusers_pipeline(model, steps, cfg):
    pipe = StableDiffusionPipeline.from_pretrained(POCKET, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    theirs = pipe(
        PROMPTS,
        latents=latents,
        num_inference_steps=steps,
        guidance_scale=cfg,
        eta=0.0,
        output_type="pt",
        negative_prompt=["a dog"] * 2,
    ).images
    ours = tl.generate(model, PROMPTS, steps=steps, cfg=cfg, eta=0.0, latents=latents, negative_prompt="a dog").images
    assert (ours - theirs).abs().max() < 1e-4
    assert ours.std() > 0.05  # the two agree on pictures, not on a constant


def test_plain_diffusers_loads_the_folder_in_float32():
    pipe = StableDiffusionPipeline.from_pretrained(POCKET, safety_checker=None)
    assert {p.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()} == {torch.float32}
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.alphas_cumprod[-1] == 0


@pytest.mark.parametrize(
    "method", [tl.presets.base(), tl.presets.code(particles=2, block=2), tl.presets.codex(particles=2, block=2)]
)
def test_an_image_depends_on_seed_prompt_and_index_alone(model, method):
    reward = tl.rewards.clip()
    runs = [
        tl.generate(model, PROMPTS, reward, method, steps=6, seed=3, images=2, batch_size=size).images for size in (1, 3, 16)
    ]
    assert (runs[0] - runs[2]).abs().max() < 1e-4
    assert (runs[1] - runs[2]).abs().max() < 1e-4
    assert (runs[2][0] - runs[2][1]).abs().max() > 0.05
    alone = tl.generate(model, PROMPTS[1], reward, method, steps=6, seed=3, images=2).images
    assert (alone - runs[2][2:]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (tl.presets.base(), 8),
        (tl.presets.bon(particles=3), 3 * 8),
        (tl.presets.code(particles=3, block=2), 3 * 8),
        (tl.presets.codex(particles=3, block=2, gradient_block=2, window=(1, 0)), 3 * (8 + 3)),
    ],
)
def test_evaluations_are_exactly_those_promised(model, preset, expected):
    rows = 0

    def count(module, args):
        nonlocal rows
        rows += len(args[0]) // 2  # a CFG pair is one evaluation

    hook = model.unet.conv_in.register_forward_pre_hook(count)
    try:
        out = tl.generate(model, "a fox", tl.rewards.clip(), preset, steps=8)
    finally:
        hook.remove()
    assert rows == out.manifest["summary"]["evaluations"] == expected == cost(preset.build(8), 8).evaluations


def test_encode_and_decode_are_inverse_enough(model):
    image = tl.generate(model, "a fox", steps=10, seed=1).images
    again = model.decode(model.encode(image))
    assert -10 * (image - again).square().mean().log10() > 15


def test_reward_errors_name_the_image(model):
    class Broken:
        name, differentiable = "broken", False

        def __call__(self, images, prompts):
            scores = torch.zeros(len(images))
            scores[-1] = float("nan")
            return scores

    who = identities(["a fox"], seed=4, images=3)
    with pytest.raises(tl.RewardError, match=r"image 2 of 'a fox', seed 4"):
        list(draw(model, plan(model, who, tl.presets.bon(particles=1), Broken(), steps=2)))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


DAMAGE = {
    "text_encoder/model.safetensors": _cut,
    "unet/diffusion_pytorch_model.safetensors": _cut,
    "tokenizer/tokenizer.json": lambda path: path.write_text("{}"),
    "scheduler/scheduler_config.json": lambda path: path.write_text("["),
    "unet/config.json": lambda path: path.write_text(path.read_text().replace("16", "32")),
}


@pytest.mark.parametrize("part", DAMAGE)
def test_a_damaged_folder_is_one_sentence(folder, tmp_path, part, capsys, no_bars):
    shutil.copytree(folder, tmp_path / "hurt")
    tl.load(tmp_path / "hurt")
    DAMAGE[part](tmp_path / "hurt" / part)
    capsys.readouterr()
    words = ("generate", "a fox", "--reward", "jpeg", "--model", str(tmp_path / "hurt"), "--steps", "2", "--out")
    assert "cannot load the model" in refused(capsys, *words, str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()
