"""Controls and learned inputs of the sampler on pipelines of other families, of random weights: nothing learnt is the model,
what is learnt moves its pictures, is saved and read again, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import tilting as tl
from support.today import TOLD, write
from tilting.conditioning.trainer import make_control_trainer
from tilting.errors import TiltingError
from tilting.models.control_file import load_control
from tilting.models.labels import width_of
from tilting.models.sampler_inputs import Guidance, SamplerInputs, begin, read_inputs

PROMPTS = ["a fox", "an owl"]
DRAWN = {"steps": 3, "seed": 3, "cfg": 3.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root, held = tmp_path_factory.mktemp("any"), {}

    def model(name):
        if name not in held:
            held[name] = tl.load(write(name, root / name), **TOLD.get(name, {}))
        return held[name]

    return model


@pytest.fixture(scope="module")
def bright():
    """Is a picture bright? Fitted to noise of two levels."""
    level = torch.arange(40) % 2
    images = 0.3 * torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.5 * level[:, None, None, None]
    words = ["yes" if one else "no" for one in level]
    return tl.condition_fit(images, words, "bright", widths=(4, 4, 8), epochs=2, batch_size=8, lr=0.02).classifier


class Red:
    """How red images are."""

    name, differentiable = "red", True

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@pytest.mark.parametrize(("name", "place"), [("sdxl", "time"), ("sd3", "latent"), ("flux", "time"), ("schnell", "score")])
def test_a_control_of_any_family(models, bright, tmp_path, name, place):
    model = models(name)
    base = tl.generate(model, PROMPTS, **DRAWN).images
    asked = {"place": place, "rank": 2, "steps": 3, "batch_size": 2, "cfg": 3.0, "gamma": 50.0}
    nothing = tl.condition_sample(
        make_control_trainer(model, [bright], PROMPTS, **asked).control(), PROMPTS, {"bright": "yes"}, **DRAWN
    )
    assert (nothing.images - base).abs().max() < 1e-5 and [one["kl"] for one in nothing.manifest["images"]] == [0.0, 0.0]
    tuned = tl.condition_train(model, bright, PROMPTS, train_steps=2, lora_lr=0.05, embedding_lr=0.3, **asked)
    assert all(row["gradient_norm"] > 0 for row in tuned.history)
    drawn = {y: tl.condition_sample(tuned.control, PROMPTS, {"bright": y}, **DRAWN) for y in ("yes", "no")}
    assert (drawn["yes"].images - drawn["no"].images).abs().max() > 1e-3
    assert all(one["kl"] > 0 for one in drawn["yes"].manifest["images"])
    tuned.control.save(tmp_path)
    again = load_control(tmp_path, model)
    assert torch.equal(tl.condition_sample(again, PROMPTS, {"bright": "yes"}, **DRAWN).images, drawn["yes"].images)
    assert torch.equal(tl.generate(model, PROMPTS, **DRAWN).images, base)  # attached, and silent


def test_labelled_pictures_teach_a_control_of_a_flow(models, tmp_path):
    """Classifier-free fine-tuning, whose times are those of the model's own schedule."""
    for i in range(10):
        Image.new("RGB", (16, 16), (40 + 20 * i,) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,bright\n" + "".join(f"{i}.png,{'no' if i < 5 else 'yes'}\n" for i in range(10)))
    data = str(tmp_path / "labels.csv")
    tuned = tl.condition_train(models("sd3"), data=data, objective="classifier-free", train_steps=2, batch_size=4, rank=2)
    assert [row["error"] > 0 and row["gradient_norm"] > 0 for row in tuned.history] == [True, True]


def test_what_a_control_cannot_be_of_is_refused(models):
    class Other:
        name = "other"

    with pytest.raises(TiltingError, match="controls are of diffusers' pipelines, which 'other' is not"):
        width_of(Other(), "latent")


def moved(module, size=0.3):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    return module


@pytest.mark.parametrize(("name", "negative"), [("sdxl", ""), ("sd3", "a dog"), ("flux", "a dog")])
def test_inputs_of_the_sampler_are_learned_on_any_family(models, tmp_path, name, negative):
    model, more = models(name), {**DRAWN, "negative_prompt": negative}
    grid, base = model.schedule.grid(3), tl.generate(model, PROMPTS, **more).images
    inputs = begin(model, ("guidance", "negative"), grid, 3.0, seed=1)
    assert torch.equal(tl.generate(inputs.on(model), PROMPTS, **more).images, base)
    fixed = SamplerInputs(Guidance([t.t for t in grid[:-1]], [5.0] * 3))
    want = tl.generate(model, PROMPTS, **{**more, "cfg": 5.0}).images
    assert (tl.generate(fixed.on(model), PROMPTS, **more).images - want).abs().max() < 1e-5
    assert (want - base).abs().max() > 1e-3
    assert (tl.generate(moved(inputs).on(model), PROMPTS, **more).images - base).abs().max() > 1e-3
    learn = {"learn": ("guidance", "negative"), "steps": 3, "cfg": 3.0, "negative_prompt": negative, "batch_size": 2, "rank": 1}
    tuned = tl.finetune(model, PROMPTS, Red(), train_steps=1, lr=0.01, **learn)
    assert tuned.history[0]["gradient_norm"] > 0 and tuned.inputs.scales() != [3.0] * 3
    tuned.save(tmp_path)
    again = read_inputs(tmp_path)
    found = [tl.generate(one.on(model), PROMPTS, **more).images for one in (tuned.inputs, again)]
    assert torch.equal(*found) and (found[0] - base).abs().max() > 0


def test_a_learned_negative_is_the_pipelines_own_negative_embeddings_moved(models):
    """By diffusers itself: a last layer that is a bias alone moves them by it."""
    model = models("sd3")
    inputs = begin(model, ("negative",), model.schedule.grid(2), 3.0)
    with torch.no_grad():
        inputs.negative.last.bias.copy_(torch.randn(32, generator=torch.Generator().manual_seed(0)))
    pipe, latents = model.pipe, torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        text, other, pooled, its = pipe.encode_prompt(PROMPTS, None, None, negative_prompt=["a dog"] * 2)
        told = {"prompt_embeds": text, "negative_prompt_embeds": other + inputs.negative.last.bias}
        told |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": its}
        want = pipe(**told, latents=latents, num_inference_steps=2, guidance_scale=3.0, output_type="pt").images
    asked = {"steps": 2, "cfg": 3.0, "eta": 0.0, "latents": latents, "negative_prompt": "a dog"}
    got, plain = (tl.generate(one, PROMPTS, **asked).images for one in (inputs.on(model), model))
    assert (got - want).abs().max() < 1e-5 < 1e-3 < (plain - want).abs().max()


def test_a_model_that_is_told_its_scale_learns_none_without_a_negative_prompt(models):
    model = models("flux")
    inputs = begin(model, ("guidance",), model.schedule.grid(2), 3.0)
    with pytest.raises(TiltingError, match=r"makes no pair of this request.*needs a negative prompt"):
        tl.generate(inputs.on(model), PROMPTS, **DRAWN)
