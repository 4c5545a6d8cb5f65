"""Any pipeline of diffusers through its own call, against itself: images, rows, purity, gradients, what it costs.

The oracle is the pipeline, run by itself from the same start on its own grid by a first-order deterministic scheduler of the
same noise. Weights are random; what holds of them holds of any.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import diffusers
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tilting as tl
from support.tiny_pipelines import MAKERS, hunyuan_image, make
from tilting.models import call as entered
from tilting.models.independent_steps import independent
from tilting.models.pipeline import Pipeline
from tilting.models.pipeline_class import pipeline_class
from tilting.objectives.recompute import recomputed
from tilting.schedule import transition

PROMPTS = ["a fox on a blue background", "an owl"]
STEPS = 4
ROWS = torch.arange(2)
APART = ("qwen_edit_plus", "sd15_t2i_adapter", "cogview4")
"""Pipelines whose call takes one prompt, and one whose prompts read each other's padding."""


@cache
def built(name):
    try:
        pipe, told = make(name)
    except (AttributeError, ImportError) as error:
        pytest.skip(f"the installed libraries have no such classes: {error}")
    negative = told.pop("negative_prompt", "")
    return pipe, told, negative, Pipeline(pipe, name, STEPS, inputs=told)


def prompts_of(pipe):
    return ["1", "2"] if isinstance(pipe, diffusers.DiTPipeline) else PROMPTS


def first_order(scheduler):
    """The scheduler's own grid, by one deterministic first-order step each."""
    name = type(scheduler).__name__
    if name.startswith(("DPMSolver", "UniPC")):
        more = {"disable_corrector": list(range(99))} if name.startswith("UniPC") else {}
        return type(scheduler).from_config(scheduler.config, solver_order=1, **more)
    if name.startswith(("PNDM", "DDPM", "Heun")):
        return diffusers.DDIMScheduler.from_config(scheduler.config)
    return scheduler


def generators(count):
    return [torch.Generator().manual_seed(5 * row) for row in range(count)]


class Still:
    """A posterior that answers with its mean, as ours do."""

    def __init__(self, encode):
        self.encode = encode

    def __call__(self, *given, **more):
        found = self.encode(*given, **more)
        first = found[0]
        if hasattr(first, "mode"):
            first.sample = lambda generator=None: first.mode()
        return found


def counted(network, calls):
    """Count the calls of a network, by those of a layer in it: what stands for the network does not reach it."""
    layer = next(part for part in network.modules() if isinstance(part, torch.nn.Linear))
    return layer.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))


def theirs(pipe, told, negative, steps=STEPS, prompts=None):
    """(images, calls of the network that denoises) of the pipeline by itself."""
    prompts, told, calls = prompts or prompts_of(pipe), dict(told), [0]
    if isinstance(pipe, diffusers.DiTPipeline):
        told["class_labels"] = [int(p) for p in prompts]
    elif isinstance(pipe, diffusers.DDPMPipeline):
        told["batch_size"] = len(prompts)
    else:
        told["prompt"] = list(prompts)
    if negative:
        told["negative_prompt"] = [negative] * len(prompts)
    real, vae = pipe.scheduler, getattr(pipe, "vae", None)
    pipe.scheduler = first_order(real)
    network = getattr(pipe, "unet", None) or pipe.transformer
    hook = counted(network, calls)
    if hasattr(vae, "encode"):
        vae.encode = Still(vae.encode)
    try:
        kind = "np" if isinstance(pipe, diffusers.DiTPipeline | diffusers.DDPMPipeline) else "pt"
        made = pipe(**told, num_inference_steps=steps, generator=generators(len(prompts)), output_type=kind)[0]
    finally:
        pipe.scheduler = real
        hook.remove()
        if hasattr(vae, "encode"):
            del vae.encode
    made = torch.as_tensor(made)
    return (made.movedim(-1, 1) if made.ndim == 4 and made.shape[-1] == 3 else made), calls[0]


@pytest.fixture
def seeded(monkeypatch):
    """What the call draws besides the start (the noise over a picture's known part) is what the oracle draws."""
    inner = entered.Call.arguments

    def arguments(self, prompts):
        told = inner(self, prompts)
        return told | ({"generator": generators(len(prompts))} if "generator" in told else {})

    monkeypatch.setattr(entered.Call, "arguments", arguments)


def begun(model, prompts, cfg):
    """The state that the pipeline's own loop begins with."""
    call = model.call(STEPS, model.arguments("", cfg, ""))
    subjects = [model.condition(p) for p in prompts]
    return entered.InterceptedCall(call, subjects, 0, skip_networks=True).run().sample[: len(prompts)]


def ours(model, prompts, negative, cfg=None, start=None):
    """Images by our transition at eta 0."""
    cfg = model.default_cfg if cfg is None else cfg
    x = begun(model, prompts, cfg) if start is None else start
    denoise, grid, rows = model.denoiser(prompts, cfg, negative), model.schedule.grid(STEPS), torch.arange(len(prompts))
    for t, s in pairwise(grid):
        x = transition(denoise(x, t, rows), t, s, 0.0).mean
    return model.decoder(prompts)(x, rows)


@contextmanager
def decodes(vae):
    """What a block asks an autoencoder's decoder for."""
    found = []
    hook = vae.decoder.register_forward_pre_hook(lambda _, given: found.append(given[0].shape)) if vae is not None else None
    yield found
    if hook is not None:
        hook.remove()


@pytest.mark.parametrize("name", [n for n in MAKERS if n not in (*APART, "sd15_lcm", "lcm")])
def test_images_are_the_pipelines_own(name, seeded):
    pipe, told, negative, model = built(name)
    with torch.no_grad():
        want, _ = theirs(pipe, told, negative)
        prompts = prompts_of(pipe)
        start = begun(model, prompts, model.default_cfg)
        assert not model.from_picture or model.start(prompts).isfinite().all()  # at pure noise too, where no picture is seen
        got = ours(model, prompts, negative, start=start)
        assert got.shape == want.shape and (got - want).abs().max() < 1e-5
        assert want.std() > 0.03  # of pictures, not of a constant
        with decodes(model.patched.vae) as paid:
            assert model.image_shape == want.shape[1:] and not paid, "a shape is not worth a decode"
        if name == "ddpm":  # which has neither words nor a scale
            return
        assert (ours(model, prompts[::-1], negative, start=start) - want).abs().max() > 1e-5, "prompts do not matter"
        if model.scale and model.default_cfg != 1:
            far = (ours(model, prompts, negative, 1.05 * model.default_cfg, start) - want).abs().max()
            assert far > 1e-5, "the scale does not matter"


@pytest.mark.parametrize("name", ["sd15_inpaint4", "sd15_inpaint4_dpm", "sd3_inpaint", "sdxl_inpaint"])
def test_what_is_blended_in_is_noised_by_the_noise_that_an_image_began_with(name):
    """As the pipeline does it that is given ``latents``; each image by its own, in any batch."""
    pipe, told, negative, model = built(name)
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(4))
    want, _ = theirs(pipe, told | {"latents": latents}, negative)
    for batch in (1, 2):
        asked = {"steps": STEPS, "eta": 0.0, "negative_prompt": negative, "batch_size": batch, "progress": False}
        got = tl.generate(model, PROMPTS, latents=latents, **asked).images
        assert (got - want).abs().max() < 1e-5, batch


@pytest.mark.parametrize("name", APART)
def test_prompts_are_called_apart_where_a_call_takes_one_or_mixes_them(name, seeded):
    pipe, told, negative, model = built(name)
    with torch.no_grad():
        want = torch.cat([theirs(pipe, told, negative, prompts=[p])[0] for p in PROMPTS])
        start = torch.cat([begun(model, [p], model.default_cfg) for p in PROMPTS])
        assert (model._single_image or model._single_prompt) and (
            ours(model, PROMPTS, negative, start=start) - want
        ).abs().max() < 2e-6
        assert (ours(model, PROMPTS[::-1], negative, start=start) - want).abs().max() > 1e-5


@pytest.mark.parametrize("name", ["sd15_lcm", "lcm"])
def test_the_only_step_of_a_consistency_model_is_its_own(name, seeded):
    pipe, told, _, model = built(name)
    with torch.no_grad():
        want, _ = theirs(pipe, told, "", steps=1)
        x, (t, s) = begun(model, PROMPTS, model.default_cfg), model.schedule.grid(1)
        x = transition(model.denoiser(PROMPTS, model.default_cfg)(x, t, ROWS), t, s, 0.0).mean
        assert (model.decoder(PROMPTS)(x, ROWS) - want).abs().max() < 2e-6
    own = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    own.set_timesteps(STEPS)
    assert [t.t for t in model.schedule.grid(STEPS)[:-1]] == own.timesteps.tolist()


def slope(f, x, grad):
    """The least relative error of a gradient's slope along itself against central differences of several widths."""
    v = grad / grad.square().mean().sqrt()
    want = (grad * v).sum().item()
    with torch.no_grad():
        found = [((f(x + h * v) - f(x - h * v)) / (2 * h)).item() for h in (3e-2, 1e-2, 1e-3, 1e-4, 1e-5)]
    return min(abs(one - want) for one in found) / max(abs(want), 1e-12)


@pytest.mark.parametrize("name", MAKERS)
def test_an_evaluation_is_a_pure_function_with_a_gradient(name):
    """Rows alone are as beside others, a second time is as the first, recomputed activations give the same bits; gradients of
    denoiser and decoder are those of differences; a pair pays what the pipeline's own step pays."""
    pipe, told, negative, model = built(name)
    prompts, cfg = prompts_of(pipe), model.default_cfg
    denoise, grid = model.denoiser(prompts, cfg, negative), model.schedule.grid(STEPS)
    t = grid[1]
    g = torch.Generator().manual_seed(1)
    x, w = (torch.randn(3, *model.latent_shape, generator=g) for _ in range(2))
    rows = torch.tensor([1, 0, 1])
    with torch.no_grad():
        many = denoise(x, t, rows)
        alone = torch.cat([denoise(x[i : i + 1], t, rows[i : i + 1]).x0 for i in range(3)])
        assert (many.x0 - alone).abs().max() < 1e-4 * many.x0.abs().max(), [(many.x0 - alone).abs().amax((1, 2, 3))]
        again = denoise(x, t, rows)
        assert all(a.equal(b) for a, b in zip(many, again, strict=True))
    calls = [0]
    hook = counted(model.backbone, calls)
    with torch.no_grad():
        paid = denoise(x[:1], t, rows[:1])
    hook.remove()
    if (
        name != "wan22"
        and not model._single_image
        and name not in ("sd15_img2img", "sd15_img2img_euler", "sdxl_img2img", "refiner")
    ):
        assert calls[0] == theirs(pipe, told, negative)[1] / (len(grid) - 1)
    assert (model.pair(cfg, negative) == 1) == (not paid.correction.any()) or name == "hunyuan_image"

    p = [p for p in model.backbone.parameters() if p.ndim >= 2][-1].requires_grad_()
    found = []
    for how in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False), lambda f, x: recomputed(f, x, [p])):
        here = x.clone().requires_grad_()
        (y,) = how(lambda q: (denoise(q, t, rows).x0,), here)
        found.append(torch.autograd.grad((y * w).sum(), [here, p]))
    p.requires_grad_(False)
    assert found[0][1].abs().max() > 0
    assert all(a.equal(b) for other in found[1:] for a, b in zip(found[0], other, strict=True))

    wide, told = make(name)
    told.pop("negative_prompt", "")
    exact = Pipeline(wide.to(torch.float64), name, STEPS, inputs=told)
    with torch.no_grad():
        double = bool(exact.denoiser(prompts, cfg, negative)(x.double(), t, rows).x0.isfinite().all())
    if not double:  # some overflow there
        exact = model
    kind = torch.float64 if double else torch.float32
    x, w = x[:2].to(kind), w[:2].to(kind)
    denoise, decode = exact.denoiser(prompts, cfg, negative), exact.decoder(prompts)

    def predicted(x):
        return (denoise(x, t, ROWS).x0 * w).sum()

    def pictures(x):
        return decode(x, ROWS).square().sum()

    for f, at in ((predicted, x), (pictures, 0.3 * x)):
        here = at.clone().requires_grad_()
        (grad,) = torch.autograd.grad(f(here), here)
        assert slope(f, at, grad) < 1e-3


def test_a_guiders_momentum_is_off_and_said_so():
    pipe, told = hunyuan_image(momentum=-0.5)
    pipe.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match="its momentum is off"):
        model = Pipeline(pipe, "hunyuan", STEPS, inputs=told)
    other = built("hunyuan_image")[3]
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = [m.denoiser(PROMPTS, 3.5)(x, m.schedule.grid(STEPS)[3], ROWS[:1]).x0 for m in (model, other)]
    assert seen[0].equal(seen[1])
    assert pipe.guider.adaptive_projected_guidance_momentum == -0.5  # the pipeline's own stays


@pytest.mark.parametrize(
    ("name", "told", "says"),
    [
        ("StableDiffusionPipeline", {}, True),
        ("StableDiffusionXLPipeline", {}, True),
        ("StableDiffusionXLPipeline", {"denoising_end": 0.8}, False),  # which cuts the list of times
        ("StableDiffusion3Pipeline", {}, True),
        ("StableDiffusion3Pipeline", {"skip_guidance_layers": [1]}, False),  # in a part of the steps
        ("FluxPipeline", {}, True),
        ("LTXPipeline", {}, True),
        ("StableDiffusionControlNetPipeline", {}, False),  # whose scale follows the number of the step
        ("WanPipeline", {}, False),  # which hands it to its networks
        ("CogVideoXPipeline", {}, False),  # which keeps its last estimate
        ("ZImagePipeline", {}, False),
        ("NoPipeline", {}, False),
    ],
)
def test_a_step_is_made_alone_where_a_pass_depends_on_no_other(name, told, says):
    shape = pipeline_class(name)
    values = {**(dict(shape.parameters) if shape else {}), **told}
    assert independent(name, frozenset(key for key, value in values.items() if value is None)) == says
