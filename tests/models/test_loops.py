"""What a loop keeps, hooks and holds beside the state, and what its scheduler means: made right, or refused."""

from __future__ import annotations

import ast
import textwrap
from itertools import pairwise
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from support.tiny_pipelines import flow, make, mask, picture, sd, sd15_pag, unet, wan_vace
from tilting.errors import TiltingError
from tilting.models.cache import content_key
from tilting.models.inputs import picture_of
from tilting.models.loop_carried import carried
from tilting.models.patched_pipeline import PatchedPipeline
from tilting.models.pipeline import Pipeline
from tilting.models.schedulers import first_order
from tilting.schedule import transition

LOOP = """
def __call__(self, prompt, image=None, latents=None, twice=False):
    kept, shape = None, 1
    for i, t in enumerate(self.progress_bar(timesteps)):
        BODY
        latents, other = self.scheduler.step(noise, t, latents)
        AFTER
"""


@pytest.mark.parametrize(
    ("body", "after", "off", "found"),
    [
        ("noise = self.net(latents)", "", (), ()),
        ("noise = self.net(latents, other)", "", (), ()),  # what the step itself returns
        ("kept = self.net(latents)\nnoise = kept", "", (), ()),
        ("noise = self.net(latents, kept)", "kept = noise", (), ("kept",)),
        ("noise = self.net(latents, kept)", "kept = latents", (), ()),  # of the state
        ("noise = self.net(latents)", "kept = kept or noise", (), ("kept",)),
        ("noise = self.net(latents)", "shape += 1", (), ("shape",)),
        ("if i == 0:\n    noise, kept = self.net(latents)\nelse:\n    noise = self.net(latents, kept)", "", (), ("kept",)),
        ("if i:\n    kept = 1\nelse:\n    kept = 2\nnoise = self.net(latents, kept)", "", (), ()),
        ("if shape < 2:\n    shape = 2\nnoise = self.net(latents, shape)", "", (), ()),  # which comes to the same again
        ("if twice:\n    kept = self.net(kept)\nnoise = self.net(latents)", "", (), ("kept",)),
        ("if twice:\n    kept = self.net(kept)\nnoise = self.net(latents)", "", ("twice",), ()),
        ("with self.net as kept:\n    noise = kept(latents)", "", (), ()),
        ("if self.interrupt:\n    continue\nelse:\n    kept = 1\nnoise = kept", "", (), ()),
        ("noise = [kept for kept in self.net(latents)]", "kept = 2", (), ()),
    ],
)
def test_what_a_pass_leaves_to_the_next_by_hand(body, after, off, found):
    text = LOOP.replace("BODY", textwrap.indent(body, " " * 8).strip()).replace("AFTER", after or "pass")
    function = ast.parse(textwrap.dedent(text)).body[0]
    assert isinstance(function, ast.FunctionDef) and carried(function, frozenset(off)) == found


@pytest.mark.parametrize(
    ("kind", "config", "meant", "last"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "flow", 0.0),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, "flow", 0.0),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "flow", 0.0),
        ("UniPCMultistepScheduler", {"prediction_type": "epsilon"}, "epsilon", 0.0),
        ("DPMSolverMultistepScheduler", {"prediction_type": "sample"}, "sample", 0.0),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "final_sigmas_type": "sigma_min"}, "flow", 0.01),
        ("DEISMultistepScheduler", {"prediction_type": "flow_prediction"}, "flow", 0.25),
    ],
)
def test_a_flow_grid_has_each_time_once_and_ends_where_the_schedulers_does(kind, config, meant, last):
    matching = kind.startswith("FlowMatch")
    scheduler = getattr(diffusers, kind)(**config, **({} if matching else {"use_flow_sigmas": True}))
    noise = first_order(scheduler)
    own = noise.kind_of_scheduler.from_config(scheduler.config)
    own.set_timesteps(4)
    points = noise.points(own.timesteps.tolist(), own.sigmas.tolist())
    assert noise.kind == meant and len(points) == 5 and points[-1].sigma == pytest.approx(last, abs=2e-3)
    assert all(a.sigma > b.sigma or b is points[-1] for a, b in pairwise(points))
    assert all(point.alpha + point.sigma == pytest.approx(1) for point in points)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="v_prediction"),
        diffusers.FlowMatchEulerDiscreteScheduler.from_config({"sigma_max": 80.0}),  # Cosmos 2: x0 + 80 noise
    ],
)
def test_states_that_are_no_mixture_are_refused(scheduler):
    scheduler.register_to_config(**{"sigma_max": 80.0} if "Flow" in type(scheduler).__name__ else {})
    with pytest.raises(TiltingError, match="no mixture of a picture and noise"):
        first_order(scheduler)


def test_what_attends_is_put_back_after_every_entry():
    pipe, told = sd15_pag()
    before = {name: type(one) for name, one in pipe.unet.attn_processors.items()}
    model = Pipeline(pipe, "pag", 3, inputs=told)
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.denoiser(["a fox"], 4.0)(x, model.schedule.grid(3)[1], torch.tensor([0]))
    assert {name: type(one) for name, one in pipe.unet.attn_processors.items()} == before


def test_a_loop_that_holds_frames_as_images_or_scales_by_its_sigmas_is_refused(monkeypatch):
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 12}
    kinds = {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}
    network = diffusers.UNet3DConditionModel(sample_size=8, attention_head_dim=2, **sizes, **kinds)
    own = sd()
    parts = {name: own.components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    film = diffusers.TextToVideoSDPipeline(**parts, unet=network)
    with pytest.raises(TiltingError, match="holds the frames of a video as images of their own"):
        Pipeline(film, "film", 2, inputs={"num_frames": 3, "height": 16, "width": 16})
    monkeypatch.setattr("tilting.models.call.source_of", lambda name: "sigma = self.scheduler.sigmas[i]")
    Pipeline(own, "own", 2)  # DDIM has none
    own.scheduler = diffusers.EulerDiscreteScheduler()
    with pytest.raises(TiltingError, match="scales by sigmas of its own"):
        Pipeline(own, "own", 2)


def test_a_call_that_takes_a_text_alone_is_called_for_each():
    pipe, told = wan_vace()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = flow(shift=3.0)
    negative = told.pop("negative_prompt")
    model = Pipeline(pipe, "vace", 2, inputs=told)
    assert model.apart
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    start, (t, s, end) = x[:1], model.schedule.grid(2)
    with torch.no_grad():
        denoise = model.denoiser(["a fox", "an owl"], model.default_cfg, negative)
        x = transition(denoise(x, t, torch.arange(2)), t, s, 0.0).mean
        x = transition(denoise(x, s, torch.arange(2)), s, end, 0.0).mean
        got = model.decoder(["a fox", "an owl"])(x, torch.arange(2))[:1]
        own = pipe(prompt="a fox", negative_prompt=negative, num_inference_steps=2, latents=start, output_type="pt", **told)[0]
    assert (got - own).abs().max() < 1e-5 and own.std() > 0.03


def test_a_cache_between_steps_is_refused():
    pipe, told = make("flux")
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(TiltingError, match="keeps a cache between steps"):
        Pipeline(pipe, "flux", 2, inputs=told)


@pytest.mark.parametrize(("name", "value", "said"), [("eta", 1.0, "is eta here"), ("denoising_end", 0.8, "drawn to its end")])
def test_an_input_that_would_go_unheard_is_refused(name, value, said):
    kind = "StableDiffusionXLPipeline"
    with pytest.raises(TiltingError, match=said):
        Pipeline(make("sdxl")[0], kind, 2, inputs={name: value})


def test_layers_that_a_pipeline_listens_to_are_asked_anew():
    pipe = sd()
    patched, encoder, heard = PatchedPipeline(pipe), pipe.text_encoder, []
    asked = patched.cached_text_encoder("text_encoder", encoder.forward, encoder)
    words = torch.arange(40).reshape(2, 20) % 9
    want = asked(words)[0]

    def listen(_, __, out):
        heard.append(len(out))

    inner = next(part for part in encoder.modules() if isinstance(part, torch.nn.Linear))
    inner.register_forward_hook(lambda *_: None)  # transformers has some of its own
    assert asked(words)[0].equal(want) and not heard
    listen.__module__ = type(pipe).__module__
    listening = inner.register_forward_hook(listen)
    assert asked(words)[0].equal(want) and heard == [2]
    assert asked(words[:1])[0].allclose(want[:1], atol=1e-6) and heard == [2, 1]
    listening.remove()
    asked(words)
    assert heard == [2, 1]


PIXELS = np.array(picture())


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        Image.fromarray(PIXELS).convert("RGBA"),
        [PIXELS],
        torch.from_numpy(PIXELS).permute(2, 0, 1)[None],
    ],
    ids=["array", "tensor", "RGBA", "list", "batch"],
)
def test_pictures_of_bytes_come_to_a_pipeline_as_its_own(given):
    found = picture_of("image", given)
    one = found[0] if isinstance(found, list) else found
    assert one.mode == "RGB" and np.array_equal(np.array(one), PIXELS)


def test_a_picture_is_turned_upright_and_one_for_print_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    opened = Image.open(tmp_path / "turned.png")
    model = Pipeline(
        sd("StableDiffusionInpaintPipeline", network=unet(9)), "own", 2, inputs={"image": opened, "mask_image": mask()}
    )
    assert np.array_equal(np.array(model.inputs["image"]), PIXELS)
    with pytest.raises(TiltingError, match="the picture of the input 'image' is CMYK"):
        picture_of("image", Image.fromarray(PIXELS).convert("CMYK"))


def test_values_are_told_apart_by_shape_kind_and_palette():
    flat = np.zeros((2, 3), np.uint8)
    red, blue = (Image.fromarray(flat, "P") for _ in range(2))
    red.putpalette([255, 0, 0]), blue.putpalette([0, 0, 255])
    values = [flat, flat.reshape(3, 2), flat.astype(np.int8), red, blue, Image.fromarray(flat, "L")]
    assert len({content_key(value) for value in values}) == len(values)
    assert content_key(flat) == content_key(flat.copy()) and content_key(SimpleNamespace(tobytes=lambda: b"a")) is not None
