"""What a pipeline is told beside its prompts: on the command line, in Python and in columns; and what is refused before a
weight is read."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import shutil
import types
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from PIL import Image
from safetensors.torch import load_file

import tilting as tl
from support.commands import manifest
from support.paths import ROOT
from support.tiny_pipelines import controlnet, image_encoder, ip_adapter, letters, llm, ltx, make, mask, picture, scrambled
from tilting.cli import main
from tilting.config.generate import GenerateConfig
from tilting.cost import cost
from tilting.errors import TiltingError
from tilting.features.fitted import save_classifier
from tilting.generation.plan import grid_of
from tilting.models.families import few_of
from tilting.models.inputs import ORIENTATION, class_for, parse_inputs, picture_of
from tilting.models.pipeline import Pipeline
from tilting.models.pipeline_class import (
    REWRITES,
    check_arguments,
    check_share,
    enough_for,
    from_pictures,
    method_of,
    pipeline_class,
    pipeline_classes,
    share_of,
    steerable_class,
    steps_left,
)
from tilting.schedule import Schedule, predict, scaled_linear
from tilting.types import Prediction

PROMPTS = ["a fox on a blue background", "an owl"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("told")
    for name in ("sd15", "z_image", "wan", "flux_fill"):
        make(name)[0].save_pretrained(place / name)
    shutil.copytree(place / "sd15", place / "img2img")
    index = json.loads((place / "sd15" / "model_index.json").read_text())
    (place / "img2img" / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionImg2ImgPipeline"}))
    pipe, _ = make("sd15")
    controlnet().save_pretrained(place / "control")
    controlnet(cross_attention_dim=28).save_pretrained(place / "control-of-another")
    make("flux_controlnet")[0].controlnet.save_pretrained(place / "control-of-flux")
    from safetensors.torch import save_file

    flat = {f"{part}.{key}": value for part, own in ip_adapter(pipe.unet).items() for key, value in own.items()}
    (place / "ip").mkdir()
    save_file(flat, place / "ip" / "ip-adapter.safetensors")
    encoder, _ = image_encoder()
    encoder.save_pretrained(place / "ip" / "image_encoder")
    picture().save(place / "picture.png")
    picture(16, 3).save(place / "other.png")
    mask().save(place / "mask.png")
    picture(32).save(place / "large.png")
    (place / "text.png").write_text("no picture")
    return place


@pytest.fixture
def here(folders, monkeypatch, tmp_path):
    monkeypatch.chdir(folders)
    return tmp_path


def draw(out, *words):
    return main(["generate", "a fox", "--steps", "3", "--quiet", "--device", "cpu", "--out", str(out), *words])


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "sd15", "--height", "8", "--width", "24"],
        ["--model", "sd15", "--image", "picture.png", "--mask", "mask.png"],
        ["--model", "sd15", "--controlnet", "control", "--input", "control_image=picture.png"],
        ["--model", "sd15", "--ip-adapter", "ip", "--input", "ip_adapter_image=picture.png", "--input", "ip_adapter_scale=0.6"],
        ["--model", "sd15", "--input", "guidance_rescale=0.7"],
        ["--model", "z_image", "--height", "16", "--width", "16", "--input", "max_sequence_length=64"],
    ],
)
def test_the_command_line_tells_a_pipeline(here, words):
    assert draw(here / "run", *words) == 0
    assert len(manifest(here / "run")["images"]) == 1
    size = Image.open(here / "run" / "images" / "00000.png").size
    assert size == ((24, 8) if "24" in words else (16, 16))
    first = (here / "run" / "images" / "00000.png").read_bytes()
    plain = [word for word in words if word in ("--model", "sd15", "z_image")]
    if "z_image" not in words and "24" not in words:
        assert draw(here / "plain", *plain) == 0
        assert (here / "plain" / "images" / "00000.png").read_bytes() != first, "what it was told does not matter"
    assert draw(here / "run", *words) == 0  # finished: nothing is drawn again


def test_a_run_goes_on_only_with_the_same_inputs(here, capsys):
    shutil.copy("picture.png", "moves.png")
    words = ["--model", "sd15", "--image", "moves.png", "--mask", "mask.png"]
    assert draw(here / "run", *words) == 0
    shutil.copy("other.png", "moves.png")
    assert draw(here / "run", *words) == 2
    assert re.search("other pictures|another picture", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "sd15", "--mask", "mask.png"], "needs a picture: give --image FILE"),
        (["--model", "sd15", "--image", "large.png", "--mask", "mask.png"], "the mask is 16x16 and the picture 32x32"),
        (["--model", "sd15", "--controlnet", "control-of-another", "--input", "control_image=picture.png"],
         "is of another model: its cross_attention_dim is 28, not 12"),
        (["--model", "sd15", "--controlnet", "control-of-flux", "--input", "control_image=picture.png"],
         "is of another family: a StableDiffusionControlNetPipeline takes no FluxControlNetModel"),
        (["--model", "sd15", "--controlnet", "control"], "needs a picture"),
        (["--model", "wan", "--frames", "10"], "frames must be 4k + 1, as 9 or 13, not 10"),
        (["--model", "wan", "--frames", "1001"], "frames must be at most 257"),
        (["--model", "sd15", "--height", "20"], "height must be a multiple of 8, not 20"),
        (["--model", "sd15", "--input", "guidance_resale=0.7"], "did you mean 'guidance_rescale'?"),
        (["--model", "sd15", "--input", "num_inference_steps=3"], "is steps here"),
        (["--model", "sd15", "--input", "guidance_scale=3"], "a StableDiffusionPipeline is cfg here: give --cfg 3"),
        (["--model", "sd15", "--image", "large.png", "--mask", "mask.png", "--height", "16"], "give them in one size"),
        (["--model", "wan", "--frames", "0"], "frames must be at least 1"),
        (["--model", "flux_fill", "--input", "image=picture.png"], "a FluxFillPipeline needs a mask: give --mask FILE"),
        (["--model", "sd15", "--input", "image=text.png"], "cannot be read as a picture"),
        (["--model", "sd15", "--input", "image=nowhere.png"], "there is no file 'nowhere.png'"),
        (["--model", "sd15", "--input", "image"], "an input is NAME=VALUE"),
        (["--model", "sd15", "--input", "height=16", "--height", "16"], "give it once"),
        (["--model", "img2img", "--input", "image=picture.png", "--input", "strength=0.3"],
         "a strength of 0.3 leaves no step of 3: give 0.334 at least, or 4 steps"),
        (["--model", "sd15", "--image", "picture.png", "--mask", "mask.png", "--strength", "0.01"],
         "a strength of 0.01 leaves no step of 3: give 0.334 at least, or 100 steps"),
        (["--model", "sd15", "--image", "picture.png", "--mask", "mask.png", "--input", "strength=1.5"], "at most 1, not 1.5"),
        (["--model", "flux_fill", "--input", "image=picture.png", "--mask", "mask.png", "--input", "strength=a"], "not 'a'"),
        (["--model", "sd15", "--image", "picture.png", "--strength", "0.1"], "a strength of 0.1 leaves no step of 3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_a_weight_is_read(here, capsys, monkeypatch, words, said):
    monkeypatch.setattr("tilting.models.loading.loading", lambda source: pytest.fail("a weight was read"))
    assert draw(here / "run", *words) == 2
    assert said in capsys.readouterr().err and not (here / "run").exists()


def shapes_of_a_mask(kind):
    """The right half white, in a format, turned where the camera was."""
    fromarray = Image.fromarray
    half, clear = mask(), mask().point(lambda v: 255 - v // 2)
    made = {
        "1": lambda: half.convert("1"),
        "L": lambda: half,
        "soft": lambda: half.point(lambda v: 100 + v * 30 // 255),  # drawn from 128 on
        "P": lambda: half.convert("P"),
        "RGB": lambda: half.convert("RGB"),
        "RGBA": lambda: half.convert("RGBA"),
        "LA": lambda: half.convert("LA"),
        "16 bits": lambda: fromarray(np.asarray(half).astype(np.uint16) * 257),
        "16 bits, dark": lambda: fromarray((np.asarray(half) > 0).astype(np.uint16) * 32_896 + 300),
        "turned": lambda: half.rotate(90),
        "clear": lambda: Image.merge("LA", (half, clear)),
        "clear colours": lambda: Image.merge("RGBA", (half, half, half, clear)),
        "black": lambda: half.point(lambda v: v // 255),
        "float": lambda: fromarray(np.asarray(half) / np.float32(255)),
    }[kind]()
    exif = Image.Exif()
    exif[ORIENTATION] = 6 if kind == "turned" else 1
    return made, exif


@pytest.mark.parametrize(
    ("kind", "said"),
    [*((kind, "") for kind in ("1", "L", "soft", "P", "RGB", "RGBA", "LA", "16 bits", "16 bits, dark", "turned")),
     ("clear", "is transparent in places"), ("clear colours", "is transparent in places"),
     ("black", "has nothing to draw: white is drawn, and its brightest pixel is 1 of 255"),
     ("float", "is of floating-point values: give a mask in black and white")],
)  # fmt: skip
def test_a_mask_of_any_format_is_read_as_diffusers_reads_it(tmp_path, kind, said):
    """Its 8 bits, for of 16 it would see white from 255 on; or one sentence, of a file and of a picture of PIL."""
    made, exif = shapes_of_a_mask(kind)
    made.save(tmp_path / ("mask.tif" if kind == "float" else "mask.png"), exif=exif)
    file = next(tmp_path.iterdir())
    for value in (str(file), Image.open(file)):
        if said:
            with pytest.raises(TiltingError, match=re.escape(said)):
                picture_of("mask_image", value)
            continue
        processor = VaeImageProcessor(1, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
        theirs = processor.preprocess(load_image(str(file)) if "16" not in kind else mask())
        assert processor.preprocess(picture_of("mask_image", value)).equal(theirs)
        assert theirs[..., 8:].all() and not theirs[..., :8].any()


def test_pndm_from_a_picture_begins_where_ddim_begins_and_not_a_point_earlier():
    """Its own list has a time twice, of which diffusers' pipeline of pictures counts (docs/models.md)."""
    pipe, told = make("sd15_img2img")
    pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    found = [point.t for point in Pipeline(pipe, "pndm", 5, inputs=told).schedule.grid(5)[:-1]]
    whole = {}
    for kind in ("DDIMScheduler", "PNDMScheduler"):
        scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
        scheduler.set_timesteps(5)
        pipe.scheduler = scheduler
        whole[kind] = pipe.get_timesteps(5, told["strength"], "cpu")[0].tolist()
    assert found == whole["DDIMScheduler"] == whole["PNDMScheduler"][1:] and whole["PNDMScheduler"][0] > found[0]


LCM_OF_PICTURES = "LatentConsistencyModelImg2ImgPipeline"
"""It has a ``get_timesteps`` that its call does not ask: it makes all its steps."""


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_latent_consistency_makes_all_its_steps_from_a_picture(strength):
    """As diffusers does, at a strength too that would leave a step of none, and steps_left knows; the times are diffusers'."""
    pipe, told = make("lcm")
    theirs = getattr(diffusers, LCM_OF_PICTURES)
    parts = {key: pipe.components[key] for key in inspect.signature(theirs).parameters if key in pipe.components}
    own = Pipeline(theirs(**parts), "lcm", 4, inputs=told | {"image": picture(), "strength": strength})
    scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(4, strength=strength)
    assert [point.t for point in own.schedule.grid(4)[:-1]] == scheduler.timesteps.tolist()
    assert own.default_steps == steps_left(own.kind, 4, strength) == 4
    assert steps_left("LatentConsistencyModelPipeline", 4, 0.5) == 2  # of the whole grid


@pytest.mark.parametrize("strength", [0.01, 0.0999, 0.1, 0.3, 1.0, 1 / 49])
def test_a_strength_leaves_the_steps_that_a_pipeline_of_pictures_makes(strength):
    """Of every class that diffusers has: by its own arithmetic, run by itself."""
    checked = 0
    for kind, cls in pipeline_classes().items():
        own = method_of(kind, "get_timesteps")
        if cls.unsupported or "strength" not in cls.parameters or own is None or kind == LCM_OF_PICTURES:
            continue
        for steps in (1, 3, 10, 49):
            left = theirs_left(own, steps, strength)
            assert (int(share_of(kind, {"strength": strength}) * steps) > 0) == (left > 0), (kind, steps)
            if left:
                check_share(kind, {"strength": strength}, steps)
            else:
                with pytest.raises(TiltingError, match=f"leaves no step of {steps}"):
                    check_share(kind, {"strength": strength}, steps)
            checked += 1
        assert theirs_left(own, enough_for(strength), strength) > 0
    assert checked > 150


def test_a_picture_with_no_mask_is_drawn_in_as_many_steps_as_its_familys_pipeline_makes():
    """Of every class of diffusers, by the arithmetic of the one of its family that begins from pictures, run by itself."""
    grid, rules = [(steps, k / 100) for steps in range(1, 31) for k in range(1, 101)], {}
    for kind, cls in pipeline_classes().items():
        if not cls.unsupported and (pictures := from_pictures(kind)):
            rules.setdefault(text(method_of(pictures, "get_timesteps")), []).append(kind)
    assert sum(map(len, rules.values())) > 60
    for kinds in rules.values():
        own = method_of(from_pictures(kinds[0]), "get_timesteps")
        for steps, strength in grid:
            left = theirs_left(own, steps, strength)
            for kind in kinds if steps % 10 == 7 else kinds[:1]:
                if kind == LCM_OF_PICTURES:
                    continue
                assert steps_left(kind, steps, strength) == left, (kind, steps, strength)


@pytest.mark.parametrize(
    "name", ["sd15_euler_karras", "sd15_dpm", "sdxl", "sd3", "flux", "chroma", "qwen", "z_image", "cogvideox"]
)
def test_a_picture_is_noised_to_the_first_point_of_its_familys_pipeline(name):
    """And the steps are those that the pipeline makes in its own call, on its own scheduler."""
    pipe, told = make(name)
    told.pop("negative_prompt", "")
    made = Pipeline(pipe, name, 5, inputs=told)
    theirs = getattr(diffusers, from_pictures(made.kind))
    theirs = theirs(**{key: pipe.components[key] for key in inspect.signature(theirs).parameters if key in pipe.components})
    frames = {"video": [picture()] * 5} if name == "cogvideox" else {"image": picture()}
    told = {key: value for key, value in told.items() if key in inspect.signature(theirs.__call__).parameters}
    for steps, strength in ((5, 0.5), (4, 0.3), (4, 1.0)):
        own = Pipeline(theirs, name, steps, inputs=told | frames | {"strength": strength}).schedule.grid(steps)
        asked = tl.plan(
            made, tl.identities(["a"], 0, 1), steps=steps, strength=strength, reference=torch.zeros(1, *made.image_shape)
        )
        assert grid_of(made, asked.method, steps)[-asked.steps_run - 1 :] == own, (steps, strength)


@cache
def text(function):
    return ast.unparse(function)


@cache
def arithmetic(text):
    space = {}
    exec(compile(f"from __future__ import annotations\n{text}", "own", "exec"), space)
    return space["get_timesteps"]


def theirs_left(own, steps, strength):
    """What a class's ``get_timesteps`` leaves of its list of times."""
    times = list(range(steps))
    scheduler = types.SimpleNamespace(timesteps=times, order=1)
    given = {"num_inference_steps": steps, "strength": strength, "timesteps": times, "sigmas": times, "device": None}
    given = {name: value for name, value in given.items() if name in [one.arg for one in own.args.args]}
    made = arithmetic(text(own))(types.SimpleNamespace(scheduler=scheduler), **given)
    return len(next(one for one in made if isinstance(one, list)))


def test_a_picture_with_a_mask_has_the_strength_that_is_asked_for(here):
    words = ["--model", "sd15", "--image", "picture.png", "--mask", "mask.png"]
    assert draw(here / "run", *words, "--strength", "0.4") == 0 and draw(here / "other", *words, "--input", "strength=0.4") == 0
    assert draw(here / "whole", *words) == 0
    pictures = [(here / run / "images" / "00000.png").read_bytes() for run in ("run", "other", "whole")]
    assert pictures[0] == pictures[1] != pictures[2]
    for run, more in (("run", {"strength": 0.4}), ("other", {"input": ["strength=0.4"]}), ("whole", {})):
        asked = {"prompts": ["a fox"], "model": "sd15", "image": "picture.png", "mask": "mask.png", "steps": 3, **more}
        told = cost(*GenerateConfig.resolve(asked).built())
        assert manifest(here / run)["summary"]["evaluations"] == told.evaluations == (3 if run == "whole" else 1)


@pytest.mark.parametrize(("name", "left"), [("sd15", 1), ("z_image", 2)])
def test_what_a_run_from_a_picture_pays_is_known_before_it(here, name, left):
    """By the windows of the whole run: FreeDoM makes a step three times where t/T is from .7 to .3, as it is in these."""
    asked = {"prompts": ["a fox"], "model": name, "image": "picture.png", "strength": 0.4, "steps": 3, "method": "freedom"}
    (here / "bright.py").write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3))\n")
    method, steps = GenerateConfig.resolve({**asked, "reward": [f"{here / 'bright.py'}:bright"]}).built()
    assert (steps, cost(method, steps).evaluations) == (left, 3 * left)


def test_columns_of_a_table_of_prompts_are_inputs_of_its_images(here):
    (here / "prompts.csv").write_text("prompt,ip_adapter_image,tag\na fox,picture.png,x\nan owl,other.png,y\n")
    words = ["--model", "sd15", "--ip-adapter", "ip", "--prompts", str(here / "prompts.csv")]
    run = ["generate", "--steps", "3", "--quiet", "--device", "cpu", *words]
    assert main([*run, "--out", str(here / "run")]) == 0
    two = [(here / "run" / "images" / f"0000{i}.png").read_bytes() for i in (0, 1)]
    for i, (prompt, file) in enumerate((("a fox", "picture.png"), ("an owl", "other.png"))):
        alone = ["--model", "sd15", "--ip-adapter", "ip", "--input", f"ip_adapter_image={file}"]
        words = ["generate", prompt, "--steps", "3", "--quiet", "--device", "cpu", "--out", str(here / f"alone{i}"), *alone]
        assert main(words) == 0
        assert (here / f"alone{i}" / "images" / "00000.png").read_bytes() == two[i]
    (here / "prompts.csv").write_text("prompt,ip_adapter_image\na fox,picture.png\na fox,other.png\n")
    assert main([*run, "--out", str(here / "twice")]) == 2


def test_inputs_of_each_prompt_in_python(folders):
    """A picture for each prompt is what one for all is, of that prompt alone; rows mix."""
    pipe, inputs = make("sd15_controlnet")
    inputs.pop("image")
    both = tl.load(pipe, **inputs, each={p: {"image": picture(16, i)} for i, p in enumerate(PROMPTS)}, image=picture(16, 9))
    x = torch.randn(3, *both.latent_shape, generator=torch.Generator().manual_seed(0))
    t, rows = both.schedule.grid(4)[1], torch.tensor([1, 0, 1])
    with torch.no_grad():
        mixed = both.denoiser(PROMPTS, 4.0)(x, t, rows).x0
        for i in (0, 1):
            alone = tl.load(pipe, **inputs, image=picture(16, i)).denoiser(PROMPTS, 4.0)(x, t, rows).x0
            assert mixed[rows == i].allclose(alone[rows == i], atol=1e-5)
            assert not mixed[rows != i].allclose(alone[rows != i], atol=1e-4)


def test_inputs_are_read_as_values():
    assert parse_inputs(["a=1", "b=0.5", "c=[1, 2]", "d=true", "e=none", "f=cat.png", "g=a=b"]) == {
        "a": 1, "b": 0.5, "c": [1, 2], "d": True, "e": None, "f": "cat.png", "g": "a=b",
    }  # fmt: skip
    with pytest.raises(TiltingError, match="given twice"):
        parse_inputs(["a=1", "a=2"])


def test_a_familys_other_pipeline_is_found_by_its_inputs():
    assert class_for("StableDiffusionPipeline", ["guidance_rescale"]) == "StableDiffusionPipeline"
    assert class_for("StableDiffusionXLPipeline", ["image", "strength"]) == "StableDiffusionXLImg2ImgPipeline"
    assert class_for("FluxPipeline", ["image", "mask_image"]) == "FluxInpaintPipeline"
    assert class_for("QwenImagePipeline", ["controlnet", "control_image"]) == "QwenImageControlNetPipeline"
    assert class_for("WanPipeline", ["image"]) == "WanImageToVideoPipeline"


@pytest.mark.slow
def test_every_class_of_diffusers_is_entered_or_refused_by_name(capsys):
    """What cannot be entered says why; a class whose loop changed shape is found here."""
    found = pipeline_classes()
    refused = {name: cls.unsupported for name, cls in found.items() if cls.unsupported}
    assert len(found) > 150 and len(refused) < len(found) / 4
    known = ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline", "WanPipeline", "QwenImageEditPipeline"]
    known += [
        "LTXImageToVideoPipeline",
        "CogVideoXPipeline",
        "StableDiffusionControlNetPAGInpaintPipeline",
        "HiDreamImagePipeline",
    ]
    assert not set(known) & set(refused)
    assert "another loop" in refused["AnimateDiffPipeline"] and "several schedulers" in refused["UnCLIPPipeline"]
    assert refused["LTX2Pipeline"] == "it steps by several schedulers (audio_scheduler)"
    assert refused["Flux2KleinKVPipeline"] == "its loop hands 'kv_cache' from step to step"
    assert "hands 'source_latents'" in refused["CycleDiffusionPipeline"] and "hooks" in refused["StableDiffusionSAGPipeline"]
    assert "no step of a scheduler" in refused["KandinskyCombinedPipeline"]
    assert pipeline_class("NoSuchPipeline") is None
    with pytest.raises(TiltingError, match="AnimateDiffPipeline cannot be steered: its loop stands in another"):
        steerable_class("AnimateDiffPipeline")
    assert main(["models", "diffusers", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {name: row["why"] for name, row in listed.items() if not row["steered"]} == refused
    assert main(["models", "diffusers"]) == 0
    assert f"{len(found) - len(refused)} of {len(found)} can be" in capsys.readouterr().out
    assert main(["models", "FluxFillPipeline"]) == 0
    assert "mask_image" in capsys.readouterr().out
    assert main(["models", "AnimateDiffPipeline"]) == 2
    assert "its loop stands in another" in capsys.readouterr().err


def test_the_commands_of_the_page_run(folders, monkeypatch, tmp_path):
    """docs/models.md's five commands as they stand there, on pipelines of random weights."""
    page = (ROOT / "docs" / "models.md").read_text()
    commands = [line for line in page.splitlines() if line.startswith("tilting ")]
    assert len(commands) == 5 and any("--frames" in command for command in commands)
    monkeypatch.chdir(folders)
    for command in commands:
        words = shlex.split(command)[1:]
        out = words.index("--out") + 1
        words[out] = str(tmp_path / words[out])
        assert main([*words, "--quiet", "--device", "cpu"]) == 0, command
        assert (tmp_path / words[out] / "manifest.json").exists()


def test_the_model_of_the_page_is_steered():
    page = (ROOT / "docs" / "models.md").read_text()
    code = page[page.index("class Gaussian:") : page.index("```", page.index("class Gaussian:"))]
    names = {"torch": torch, "tl": tl, "Schedule": Schedule, "scaled_linear": scaled_linear, "predict": predict}
    names["Prediction"] = Prediction
    exec(code, names)
    assert names["out"].images.shape == (1, 3, 8, 8)


LEFT = """
def left(images, prompts):
    return images[..., :3].mean((1, 2, 3))
"""


def test_fine_tuning_takes_a_mask_and_goes_on_with_it_alone(here, capsys):
    """The left of what it draws and scores is the picture's own, whatever the seed."""
    (here / "left.py").write_text(LEFT)
    words = ["finetune", "a fox", "--model", "sd15", "--reward", f"{here / 'left.py'}:left", "--objective", "ddpo"]
    words += ["--steps", "3", "--batch-size", "4", "--rank", "2", "--sample-every", "0", "--quiet", "--train-steps", "1"]
    masked = ["--input", "image=picture.png", "--mask", "mask.png"]
    assert main([*words, "--out", str(here / "free")]) == 0
    assert main([*words, *masked, "--out", str(here / "masked")]) == 0
    drawn = ["--image", "picture.png", "--mask", "mask.png", "--reward", f"{here / 'left.py'}:left", "--images", "2"]
    assert draw(here / "drawn", "--model", "sd15", *drawn) == 0
    free, learnt = (json.loads((here / name / "metrics.jsonl").read_text())["reward"] for name in ("free", "masked"))
    of_picture = [one["reward"] for one in manifest(here / "drawn")["images"]]
    assert max(abs(learnt - one) for one in of_picture) < 0.5 * abs(free - learnt)
    assert (here / "masked" / "lora").is_dir()
    more = [word if word != "1" else "2" for word in words]
    assert main([*more, *masked[:2], "--mask", "large.png", "--out", str(here / "masked")]) == 2
    assert main([*more, "--out", str(here / "masked")]) == 2
    capsys.readouterr()
    assert main([*more, *masked, "--out", str(here / "masked")]) == 0


def test_a_control_is_trained_and_drawn_in_the_size_that_is_asked_for(here, capsys):
    images, words = torch.rand(20, 3, 8, 24), ["yes", "no"] * 10
    save_classifier(tl.condition_fit(images, words, "bright", kind="cnn", widths=(4, 4, 8), epochs=1).classifier, here / "fit")
    words, size = ["a fox", "--model", "sd15", "--steps", "2", "--quiet"], ["--height", "8", "--width", "24"]
    train = ["--classifier", str(here / "fit"), "--train-steps", "1", "--batch-size", "2", "--rank", "2", "--sample-every", "0"]
    control = str(here / "ctl")
    assert main(["condition", "train", *words, *size, *train, "--out", control]) == 0
    assert load_file(here / "ctl" / "embedding.safetensors")["tables.bright"].shape == (2, 4 * 4 * 12)
    sample = ["condition", "sample", *words, "--control", control, "--label", "bright=yes"]
    assert main([*sample, *size, "--out", str(here / "drawn")]) == 0
    assert Image.open(here / "drawn" / "images" / "00000.png").size == (24, 8)
    assert main([*sample, "--out", str(here / "other")]) == 2  # a control of latents is one of their size
    assert "Traceback" not in capsys.readouterr().err
    assert main(["condition", "train", *words, *train, "--height", "16", "--width", "24", "--out", control]) == 2
    assert "with another height" in capsys.readouterr().err


# What a call makes at random before its loop


def ernie():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 32, "in_channels": 16}
    network = diffusers.ErnieImageTransformer2DModel(**sizes, out_channels=16, text_in_dim=16, rope_axes_dim=(4, 6, 6))
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    blocks |= {
        "block_out_channels": (8, 8),
        "latent_channels": 4,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "sample_size": 16,
    }
    return diffusers.ErnieImagePipeline(
        transformer=scrambled(network),
        vae=diffusers.AutoencoderKLFlux2(**blocks).eval(),
        text_encoder=llm("MistralModel", "MistralConfig"),
        tokenizer=letters(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        pe=llm("MistralForCausalLM", "MistralConfig"),
        pe_tokenizer=letters(24),
    )


def test_a_prompt_stays_what_it_was_where_a_call_can_have_it_rewritten(monkeypatch):
    """ERNIE-Image has a language model rewrite every prompt, by chance, unless it is told not to."""
    asked = []
    monkeypatch.setattr(
        diffusers.ErnieImagePipeline,
        "_enhance_prompt_with_pe",
        lambda self, text, *_, **__: asked.append(text) or f"{text} {len(asked)}",
    )
    model = tl.load(ernie(), height=32, width=32)
    x, t, rows = torch.randn(1, *model.latent_shape), model.schedule.grid(4)[0], torch.arange(1)
    with torch.no_grad():
        first, again = (model.denoiser(["a fox"], 1.0)(x, t, rows).x0 for _ in range(2))
    assert torch.equal(first, again) and not asked
    with pytest.raises(TiltingError, match="use_pe lets a ErnieImagePipeline write its prompts anew at every evaluation"):
        tl.load(ernie(), height=32, width=32, use_pe=True)
    tl.load(ernie(), height=32, width=32, use_pe=False)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("Flux2Pipeline", "caption_upsample_temperature", 0.15),
        ("LongCatImagePipeline", "enable_prompt_rewrite", True),
        ("ErnieImagePipeline", "use_pe", True),
    ],
)
def test_who_asks_for_rewritten_prompts_is_told_to_do_it_first(kind, name, value):
    names = pipeline_class(kind).parameters
    with pytest.raises(TiltingError, match=f"{name} lets a {kind} write its prompts anew"):
        check_arguments(kind, names, {name: value})
    check_arguments(kind, names, {name: REWRITES[name]})


def test_tokens_that_are_drawn_for_all_images_at_once_are_refused():
    with pytest.raises(TiltingError, match="GlmImagePipeline cannot be steered: its call draws tokens at random"):
        steerable_class("GlmImagePipeline")


def test_a_decoder_that_takes_noise_and_a_time_decodes():
    """LTX from 0.9.1 on, from a picture, draws by torch's own function, which takes one generator and no list."""
    pipe, told = ltx()
    config = {**pipe.vae.config, "timestep_conditioning": True}
    parts = {**pipe.components, "vae": type(pipe.vae).from_config(config).eval()}
    model = tl.load(diffusers.LTXImageToVideoPipeline(**parts), **{**told, "image": picture(32)})
    z = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = model.decoder(["a fox", "an owl"])(z, torch.arange(2))
        alone = model.decoder(["an owl"])(z[1:], torch.arange(1))
    assert both.isfinite().all() and (both[1] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "few"),
    [
        *(
            (name, False)
            for name in ("HyperRealism_v3", "hyperfusion", "Hyperion-XL", "turbocharged", "undistilled", "stillmcx")
        ),
        *(
            (name, True)
            for name in ("Hyper-SD15", "HyperSDXL", "SDXL-Lightning", "sdxl_lightning_4step", "sdxl-turbo", "sd_turbo")
        ),
        *(
            (name, True)
            for name in ("dreamshaperXL_v21TurboDPMSDE", "realvisxlV40Turbo", "mixLCM", "FLUX.1-schnell", "dmd2-sdxl")
        ),
        *((name, True) for name in ("Juggernaut-Hyper", "rundiffusionHyper", "flux-distilled")),
    ],
)
def test_few_steps_are_of_models_whose_names_say_so_in_a_word(name, few):
    assert (few_of(name, "DDIMScheduler") is not None) == few
