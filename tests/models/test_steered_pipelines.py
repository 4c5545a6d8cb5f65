"""Methods and objectives on pipelines of different kinds that no adapter knows; LoRAs of them in plain diffusers."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from functools import cache

import pytest
import torch

import tilting as tl
from support.loras import lora_off
from support.tiny_pipelines import make
from tilting.conditioning.guided import ClassifierGuided
from tilting.declare import declared
from tilting.errors import TiltingError
from tilting.generation.finite import Watched
from tilting.models.labels import Augmented, Controlled, LabelEmbedding, width_of
from tilting.models.look_decoder import LookDecoder
from tilting.models.lora_stack import Windowed
from tilting.models.pipeline import Pipeline
from tilting.models.sampler_inputs import Guidance, SamplerInputs
from tilting.objectives import OBJECTIVES
from tilting.presets import METHODS
from tilting.training.samples import _Within

PROMPTS = ["a fox on a blue background", "an owl"]
KINDS = ("sd15_controlnet", "sdxl_inpaint", "sd15_ip", "kontext", "qwen", "z_image", "sana", "dit")
TUNED = ("wan", "sd15_controlnet", "kontext", "z_image", "sd15_inpaint4")
"""A video, a ControlNet, an edit, a flow and an inpainting."""


class Red:
    """How red pictures are."""

    name, differentiable = "red", True

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@cache
def model(name):
    pipe, told = make(name)
    negative = told.pop("negative_prompt", "")
    return Pipeline(pipe, name, 3, inputs=told), negative


def prompts_of(name):
    return ["1", "2"] if name == "dit" else PROMPTS


@pytest.mark.parametrize("name", KINDS)
def test_selection_and_gradients_steer_any_pipeline(name):
    """code and dps raise the reward of the very images; what is drawn does not depend on the batch."""
    made, negative = model(name)
    one = {"seed": 3, "negative_prompt": negative, "steps": 3}
    base = tl.generate(made, prompts_of(name), Red(), "base", eta=1.0, **one)
    code = tl.generate(made, prompts_of(name), Red(), tl.presets.bon(particles=5), **one)
    gained = [a["reward"] - b["reward"] for a, b in zip(code.manifest["images"], base.manifest["images"], strict=True)]
    assert min(gained) >= -1e-5 and max(gained) > 1e-4
    guided = tl.generate(made, prompts_of(name), Red(), tl.presets.dps(), **one)
    assert guided.images.isfinite().all() and (guided.images - base.images).abs().max() > 1e-5
    alone = tl.generate(made, prompts_of(name), Red(), tl.presets.bon(particles=5), batch_size=1, **one)
    assert (alone.images - code.images).abs().max() < 1e-3
    assert base.manifest["summary"]["evaluations"] == 2 * (len(made.schedule.grid(3)) - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, "wan"])
def test_every_method_runs_on_any_pipeline(name):
    made, negative = model(name)
    negative = negative or "a bad owl"  # kontext has a pair with one only
    for method in METHODS if name != "dit" else [one for one in METHODS if one != "prompt"]:  # which adds words to a class
        preset = METHODS[method]()
        more = {"image": torch.full((1, *made.image_shape), 0.5)} if preset.needs_picture else {}
        steps = 3 if preset.needs_picture else 2  # of which a strength of 0.6 leaves one, of two that sdxl_inpaint's own leaves
        drawn = tl.generate(made, prompts_of(name)[:1], Red(), method, steps=steps, negative_prompt=negative, **more)
        assert drawn.images.isfinite().all(), method


@pytest.mark.parametrize(("name", "objective"), [*((name, "draft-lv") for name in (*TUNED, "qwen", "sana")), ("wan", "ddpo")])
def test_a_lora_of_any_pipeline_is_trained_and_loads_in_plain_diffusers(name, objective, tmp_path):
    made, negative = model(name)
    base = tl.generate(made, PROMPTS[:1], Red(), steps=3, eta=0.0, seed=2, negative_prompt=negative)
    asked = {"train_steps": 2, "steps": 3, "batch_size": 2, "rank": 2, "lr": 0.05, "negative_prompt": negative}
    tuned = tl.finetune(made, PROMPTS, Red(), objective, **asked)
    assert tuned.history[0]["gradient_norm"] > 0
    drawn = tl.generate(made, PROMPTS[:1], Red(), steps=3, eta=0.0, seed=2, negative_prompt=negative)
    assert (drawn.images - base.images).abs().max() > 1e-4
    with lora_off(made.backbone):
        off = tl.generate(made, PROMPTS[:1], Red(), steps=3, eta=0.0, seed=2, negative_prompt=negative)
    assert off.images.equal(base.images)
    made.backbone.delete_adapters("tilting")
    tuned.save(tmp_path)
    fresh, told = make(name)
    fresh.load_lora_weights(str(tmp_path))
    told.pop("negative_prompt", "")
    theirs = tl.generate(
        Pipeline(fresh, name, 3, inputs=told), PROMPTS[:1], Red(), steps=3, eta=0.0, seed=2, negative_prompt=negative
    )
    assert (theirs.images - drawn.images).abs().max() < 1e-4


def test_a_pipeline_that_begins_from_pictures_is_drawn_around_them_and_not_trained():
    pipe, told = make("sd15_img2img")
    made = Pipeline(pipe, "img2img", 10, inputs=told)
    little = Pipeline(pipe, "img2img", 10, inputs={**told, "strength": 0.2})
    clean = made.start(PROMPTS)
    assert clean.shape == (2, *made.latent_shape) and clean[0].equal(clean[1])
    kept = [tl.generate(one, PROMPTS[:1], steps=10, eta=0.0, cfg=1.0).images for one in (little, made)]
    with torch.no_grad():
        picture = made.decode(clean[:1])
    assert (kept[0] - picture).abs().mean() < (kept[1] - picture).abs().mean()  # the less noise, the nearer
    with pytest.raises(TiltingError, match="begins from pictures"):
        tl.finetune(made, PROMPTS, Red(), train_steps=1, steps=10)


@pytest.mark.parametrize("name", ["sd15_inpaint4", "sd15_inpaint9"])
def test_a_gradient_moves_only_what_a_mask_lets_move(name):
    """With 4 channels the loop puts the picture back outside the mask, so that no gradient reaches it; with 9 it does not. The
    reward is of the whole picture either way."""
    made, _ = model(name)
    t, rows = made.schedule.grid(3)[1], torch.zeros(1, dtype=torch.long)
    x = torch.randn(1, *made.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    clean = made.denoiser(PROMPTS[:1], 4.0)(x, t, rows).x0
    (slope,) = torch.autograd.grad(Red()(made.decoder(PROMPTS[:1])(clean, rows), PROMPTS[:1]).sum(), x)
    left, right = slope[..., :4].abs().max(), slope[..., 4:].abs().max()  # white in the mask is the right half
    assert right > 0 and (left == 0) == (name == "sd15_inpaint4")
    with torch.no_grad():
        moved = (made.before_decoder(x + 1) - made.before_decoder(x)).abs()
    assert moved[..., 4:].min() > 0 and (moved[..., :4].max() == 0) == (name == "sd15_inpaint4")
    guided = tl.generate(made, PROMPTS[:1], Red(), tl.presets.dps(strength=5.0), steps=3, seed=1, eta=0.0)
    assert guided.manifest["images"][0]["reward"] == pytest.approx(Red()(guided.images, PROMPTS[:1]).item(), abs=1e-6)


class Flat(torch.nn.Module):
    """A classifier of noisy latents that says the same of all."""

    def log_prob(self, x, t, y):
        return 0 * x.flatten(1).sum(1)


WRAPPED = {
    "a window of LoRAs": lambda model: Windowed(model, 3),
    "classifier guidance": lambda model: ClassifierGuided(model, {"y": Flat()}, {"y": 0.0}),
    "a look for what is not finite": Watched,
    "a context of training": lambda model: _Within(model, nullcontext),
    "learned inputs": lambda model: SamplerInputs().on(model),
    "a learned scale": lambda model: SamplerInputs(Guidance([t.t for t in model.schedule.grid(3)[:-1]], [7.5] * 3)).on(model),
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("name", ["sd15_inpaint4", "sd15_inpaint9"])
def test_a_model_in_another_draws_what_it_draws(name, how):
    """Also where the loop blends its picture in by the noise that each image began with."""
    made, _ = model(name)
    asked = {"steps": 3, "eta": 0.0, "seed": 1, "cfg": 7.5, "progress": False}
    want, got = (tl.generate(one, PROMPTS, **asked).images for one in (made, WRAPPED[how](made)))
    assert (got - want).abs().max() < 1e-5 and want.std() > 0.03


@pytest.mark.parametrize("place", ["latent", "score"])
def test_a_control_that_adds_nothing_leaves_what_is_blended_in(place):
    """x0 is of the latents that the network saw, which hold the picture outside the mask, not of those it was asked about."""
    made, _ = model("sd15_inpaint4")
    embedding = LabelEmbedding({"y": 2}, width_of(made, place))
    with torch.no_grad():
        embedding.tables["y"].zero_()
    control = Controlled(Augmented(made, embedding, place), {"y": 1.0})
    t, rows = made.schedule.grid(3)[1], torch.arange(2)
    x = torch.randn(2, *made.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, got = (one.denoiser(PROMPTS, 4.0)(x, t, rows) for one in (made, control))
    for ours, theirs in zip(got, want, strict=True):
        assert (ours - theirs).abs().max() < 1e-4
    assert (want.x0 - made.predict(want.eps, x, t)[1]).abs()[..., :4].max() > 1e-2  # where nothing is drawn


def test_a_control_has_what_its_model_is_run_with():
    """Estimates are decoded by its look decoder, what waits waits; a cache of what one network made is not for several."""
    pipe, told = make("sd15_inpaint9")
    made = Pipeline(pipe, "mine", 3, inputs=told)
    augmented = Augmented(made, LabelEmbedding({"y": 2}, width_of(made, "latent")))
    plain = Controlled(augmented, {"y": 1.0})
    assert plain.looker(PROMPTS) is None and not getattr(plain, "waits", False) and getattr(plain, "place", None) is None
    made.waits, made.place = True, torch.device("cpu")
    made.look_decoder = LookDecoder(deepcopy(pipe.vae), pipe.vae.config)
    control = Controlled(augmented, {"y": 1.0})
    assert control.waits and control.place == made.place and control.look_decoder is made.look_decoder
    x, rows = torch.randn(2, *made.latent_shape), torch.arange(2)
    with torch.no_grad():
        assert (control.looker(PROMPTS)(x, rows) - made.decoder(PROMPTS)(x, rows)).abs().max() < 1e-4
    made.anew = lambda: None
    with pytest.raises(TiltingError, match="a control asks the network several times a step, which a cache would mix"):
        Controlled(augmented, {"y": 1.0})


def test_a_number_that_is_not_finite_is_named_where_a_picture_is_blended_in():
    pipe, told = make("sd15_inpaint4")
    with torch.no_grad():
        pipe.unet.conv_out.weight.fill_(torch.nan)
    with pytest.raises(TiltingError, match="network"):
        tl.generate(Pipeline(pipe, "broken", 3, inputs=told), PROMPTS[:1], steps=2, progress=False)


@pytest.mark.parametrize(("name", "steps"), [("sd15_lcm", 1), ("sd15_lcm", 4), ("schnell", 1), ("schnell", 4)])
def test_models_of_few_steps_are_at_home_with_reno(name, steps):
    """Their defaults are few steps without guidance; ReNO climbs at 1 and 4; what selects between steps says what it is."""
    pipe, told = make(name)
    told.pop("guidance_scale")
    pipe.register_to_config(_name_or_path="someone/FLUX.1-schnell" if name == "schnell" else "someone/dreams")
    made = tl.load(pipe, **told)
    assert (made.default_steps, made.default_cfg) == (4, 1.0)
    base = tl.generate(made, PROMPTS[:1], Red(), "base", steps=steps, eta=0.0)
    climbed = tl.generate(made, PROMPTS[:1], Red(), tl.presets.reno(iterations=4), steps=steps)
    assert climbed.manifest["images"][0]["reward"] > base.manifest["images"][0]["reward"] + 1e-5
    if steps == 1:
        with pytest.warns(UserWarning, match="code never selects in 1 step, and is best-of-N"):
            drawn = tl.generate(made, PROMPTS[:1], Red(), "code", steps=1)
        bon = tl.generate(made, PROMPTS[:1], Red(), "bon", steps=1)
        assert drawn.images.equal(bon.images)


def test_a_controlnets_maps_are_no_second_branch():
    """One image without guidance is asked once, however many maps its ControlNet gives."""
    made, _ = model("sd15_controlnet")
    x = torch.randn(1, *made.latent_shape, generator=torch.Generator().manual_seed(0))
    seen = made.denoiser(PROMPTS[:1], 1.0)(x, made.schedule.grid(3)[1], torch.zeros(1, dtype=torch.long))
    assert seen.x0.isfinite().all() and not seen.correction.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNED)
def test_every_objective_trains_any_pipeline(name):
    """A training step of each moves the LoRA."""
    made, negative = model(name)
    for objective in OBJECTIVES:
        cheap = {"timesteps": 1, "epochs": 1, **({"method": "bon"} if objective == "opd" else {})}
        its = OBJECTIVES[objective](**{name: cheap[name] for name in declared(OBJECTIVES[objective]) if name in cheap})
        asked = {"train_steps": 1, "steps": 2, "batch_size": max(2, its.group_size), "rank": 2, "lr": 0.01}
        tuned = tl.finetune(made, PROMPTS[:1], Red(), its, negative_prompt=negative, **asked)
        assert tuned.history[0]["gradient_norm"] is not None, (objective, tuned.history[0])
        assert all(value.isfinite().all() for value in tuned.lora.values()), objective  # none moved is refused
