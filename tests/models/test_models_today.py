"""The newer families against diffusers itself, on pipelines of random weights; parity in float32, 1e-4."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

import tilting as tl
from support import tiny_pipelines
from support.loras import lora_off
from support.today import MAKERS, TOLD, write
from tilting import objectives
from tilting.cli import main
from tilting.cost import cost
from tilting.errors import TiltingError
from tilting.models.attach import attach_all
from tilting.models.lora import lora_state
from tilting.models.lora_file import parse_lora
from tilting.models.lora_targets import stack_of, target_modules_of, target_names

PROMPTS = ["a fox on a blue background, noto style", "an owl"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("today")
    return lambda name: str(write(name, place / name))


@pytest.fixture(scope="module")
def models(folders):
    held = {}

    def model(name):
        if name not in held:
            held[name] = tl.load(folders(name), **TOLD.get(name, {}))
        network = held[name].backbone
        if "tilting" in getattr(network, "peft_config", {}):
            network.delete_adapters("tilting")
        return held[name]

    return model


class Red:
    """How red images are."""

    name, differentiable = "red", True

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def noise(model, seed=5):
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(seed))


@cache
def pipeline(folder, *without):
    """diffusers' own pipeline of a folder."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(without))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(folder, name, latents, steps, cfg, negative="", lora=None, without=()):
    """The images of diffusers' own pipeline."""
    pipe = pipeline(folder, *without)
    if lora is not None:
        pipe.load_lora_weights(lora)
    more = {"negative_prompt": [negative] * 2} if negative else {}
    if name in ("flux", "schnell"):
        more |= {"height": 16, "width": 16, "max_sequence_length": 512 if name == "flux" else 256}
        if negative or name == "schnell":
            more |= {"true_cfg_scale": cfg}
            cfg = 3.5
    if name == "pixart":
        more |= {"use_resolution_binning": False, "clean_caption": False, "negative_prompt": negative}
    if name in ("pixart", "sdxl"):
        more |= {"eta": 0.0}
    drawn = pipe(PROMPTS, latents=latents, num_inference_steps=steps, guidance_scale=cfg, output_type="pt", **more).images
    if lora is not None:
        pipe.unload_lora_weights()
    return drawn


@pytest.mark.parametrize(
    ("name", "steps", "cfg", "negative"),
    [
        ("sdxl", 6, 5.0, ""),
        ("sdxl", 5, 3.0, "a dog"),
        ("sdxl", 5, 1.0, ""),
        ("sd3", 6, 7.0, ""),
        ("sd3", 5, 3.0, "a dog"),
        ("sd3", 5, 1.0, ""),
        ("flux", 6, 3.5, ""),
        ("flux", 5, 1.0, ""),
        ("flux", 5, 4.0, "a dog"),
        ("schnell", 4, 1.0, ""),
        ("schnell", 4, 2.0, "a dog"),
        ("pixart", 6, 4.5, ""),
        ("pixart", 5, 1.0, ""),
    ],
)
def test_unguided_images_equal_the_diffusers_pipeline(folders, models, name, steps, cfg, negative):
    model = models(name)
    latents = noise(model)
    want = theirs(folders(name), name, latents, steps, cfg, negative)
    ours = tl.generate(model, PROMPTS, steps=steps, cfg=cfg, eta=0.0, latents=latents, negative_prompt=negative).images
    assert (ours - want).abs().max() < 1e-4
    assert ours.std() > 0.05  # the two agree on pictures, not on a constant
    same = tl.generate(model, PROMPTS, steps=steps, cfg=cfg, eta=0.0, latents=latents[:1].expand_as(latents)).images
    assert (same[0] - same[1]).abs().max() > 2e-4  # and the words matter
    other = tl.generate(model, PROMPTS, steps=steps, cfg=cfg + 2, eta=0.0, latents=latents, negative_prompt=negative).images
    assert (ours - other).abs().max() > 2e-4  # as does the scale


@pytest.mark.parametrize("t5", [True, False])
def test_t5_may_be_absent_and_zeros_stand_for_it(tmp_path, t5):
    from support.today import sd3

    sd3(t5).save_pretrained(tmp_path)
    model = tl.load(str(tmp_path))
    latents = noise(model)
    ours = tl.generate(model, PROMPTS, steps=4, cfg=3.0, eta=0.0, latents=latents).images
    want = theirs(tmp_path, "sd3", latents, 4, 3.0, without=() if t5 else ("text_encoder_3", "tokenizer_3"))
    assert (ours - want).abs().max() < 1e-4 and (model.text_encoder_3 is not None) == t5


def test_schedulers_that_are_more_than_a_grid_are_refused():
    """Thresholding moves every estimate; some do not say with which noise a model was trained. What another left is nothing."""
    from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler

    from tilting.models.schedulers import first_order

    with pytest.raises(TiltingError, match="DDIMScheduler with thresholding"):
        first_order(DDIMScheduler(thresholding=True))
    with pytest.raises(TiltingError, match="EDMEulerScheduler does not say"):
        first_order(EDMEulerScheduler())
    left = EulerDiscreteScheduler.from_config({**DDIMScheduler().config, "thresholding": True})
    assert first_order(left).kind == first_order(DDIMScheduler()).kind == "epsilon"


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize("method", ["code", "codex"])
def test_methods_run_and_pay_what_they_promise(models, name, method):
    model, rows = models(name), 0
    told = name in ("flux", "schnell")  # a distilled scale, or none: no pair

    def count(module, args):
        nonlocal rows
        rows += len(args[0])

    rule = {"rule": "plain", "strength": 0.3} if told else {}
    preset = tl.presets.code(particles=3, block=2)
    if method == "codex":
        preset = tl.presets.codex(particles=3, block=2, gradient_block=2, **rule)
    first = getattr(model.backbone, "x_embedder", None) or next(model.backbone.children())  # in what is computed, not answered
    hook = first.register_forward_pre_hook(count)
    try:
        cfg = 1.0 if name == "schnell" else 3.0
        drawn = tl.generate(model, PROMPTS, Red(), preset, steps=4, cfg=cfg, batch_size=8)
        base = tl.generate(model, PROMPTS, Red(), steps=4, cfg=cfg)
    finally:
        hook.remove()
    paid = drawn.manifest["summary"]["evaluations"]
    assert paid == 2 * cost(preset.build(4), 4).evaluations
    assert rows == (paid + 8) * (1 if told else 2)
    assert drawn.manifest["summary"]["reward_mean"] > base.manifest["summary"]["reward_mean"]


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_run_encodes_each_text_once(models, name):
    """However they are drawn together; again where the encoder was written over."""
    model, rows = models(name), []
    model.forget()
    encoder = model.text_encoder_2 if name in ("flux", "schnell") else model.text_encoder
    layer = next(part for key, part in encoder.named_modules() if key.endswith(("layers.0", "block.0")))
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    prompts, cfg = ["a fox", "an owl", "a crab"], 1.0 if name == "schnell" else 3.0
    tl.generate(model, "a", steps=2, cfg=cfg)  # the word that a call is looked at with
    rows.clear()
    drawn = tl.generate(model, prompts, steps=2, cfg=cfg, images=3, batch_size=2)  # five groups, two of them of two prompts
    empty = name in ("sd3", "pixart")  # what is told of no prompt is read of one too
    assert sum(rows) == len(prompts)
    apart = torch.cat([tl.generate(model, p, steps=2, cfg=cfg, images=3).images for p in prompts])
    assert torch.allclose(drawn.images, apart, atol=1e-4) and sum(rows) == len(prompts)
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.0)
    tl.generate(model, "a fox", steps=2, cfg=cfg)
    hook.remove()
    assert sum(rows) == len(prompts) + 1 + empty


def test_a_distilled_scale_has_no_correction_to_go_by(models):
    with pytest.raises(TiltingError, match="is told its scale, has one with a negative prompt only"):
        tl.generate(models("flux"), PROMPTS, Red(), tl.presets.codex(particles=2), steps=3)
    drawn = tl.generate(
        models("flux"), PROMPTS, Red(), tl.presets.codex(particles=2, block=1), steps=2, negative_prompt="a dog"
    )
    assert drawn.images.std() > 0.05


@pytest.mark.parametrize(("name", "cfg"), [("sdxl", 5.0), ("sd3", 7.0), ("flux", 3.5), ("pixart", 4.5)])
def test_gradients_of_the_denoiser_agree_with_finite_differences(folders, name, cfg):
    model = tl.load(folders(name), **TOLD.get(name, {})).double()
    with torch.no_grad():
        denoise = model.denoiser(PROMPTS, cfg)
    t = model.schedule.grid(10)[4]
    x, along, weigh = (noise(model, seed).double() for seed in (1, 2, 3))

    def value(x):
        return (weigh * denoise(x, t, torch.tensor([1, 0])).x0).sum()

    x.requires_grad_()
    slope = (torch.autograd.grad(value(x), x)[0] * along).sum()
    with torch.no_grad():
        h = 2e-3 if model.schedule.kind == "flow" else 1e-5  # their norms and angles are float32 in any precision
        measured = (value(x + h * along) - value(x - h * along)) / (2 * h)
        plain = (weigh * along).sum() / (t.alpha if name in ("sdxl", "pixart") else 1)
    assert abs(slope - measured) < (1e-3 if h > 1e-4 else 1e-6) * abs(measured)
    assert abs(slope - plain) > 1e-2 * abs(plain)  # the network itself has a part in it


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_a_tuned_lora_loads_in_plain_diffusers_and_gives_the_same_images(folders, models, name, tmp_path):
    model = models(name)
    latents, cfg = noise(model), model.default_cfg
    draw = lambda: tl.generate(model, PROMPTS, steps=4, cfg=cfg, eta=0.0, latents=latents).images  # noqa: E731
    before = draw()
    tuned = tl.finetune(model, PROMPTS, Red(), train_steps=2, steps=4, batch_size=2, rank=2, lr=0.05)
    moved = [bool(value.any()) for key, value in tuned.lora.items() if key.endswith("lora.up.weight")]
    assert sum(moved) >= 0.9 * len(moved)  # all but what a last joint block asks of the text, which no one reads
    assert all(row["reward"] is not None and row["gradient_norm"] > 0 for row in tuned.history)
    after = draw()
    assert (after - before).abs().max() > 5e-3
    with lora_off(model.backbone):
        assert (draw() - before).abs().max() < 1e-6
    tuned.save(tmp_path)
    assert (after - theirs(folders(name), name, latents, 4, cfg, lora=str(tmp_path))).abs().max() < 1e-4
    model.backbone.delete_adapters("tilting")
    stacked = attach_all(model, [parse_lora(str(tmp_path))], 4)
    assert (tl.generate(stacked, PROMPTS, steps=4, cfg=cfg, eta=0.0, latents=latents).images - after).abs().max() < 1e-5
    assert lora_state(model.backbone, "stacked0").keys() == tuned.lora.keys()
    model.backbone.delete_adapters("stacked0")


@pytest.mark.parametrize(
    ("name", "parts", "ends"),
    [
        ("sdxl", ("attn2",), {"attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"}),
        ("pixart", ("ff",), {"ff.net.0.proj", "ff.net.2"}),
        ("sd3", ("attn2",), {"attn.to_q", "attn.add_k_proj", "attn.to_add_out", "attn2.to_q"}),
        ("sd3", ("ff",), {"ff.net.0.proj", "ff_context.net.2"}),
        ("flux", ("attn1",), {"transformer_blocks.0.attn.add_q_proj", "single_transformer_blocks.0.attn.to_q"}),
        (
            "flux",
            ("ff",),
            {
                "transformer_blocks.0.ff_context.net.2",
                "single_transformer_blocks.0.proj_mlp",
                "single_transformer_blocks.0.proj_out",
            },
        ),
    ],
)
def test_a_part_is_its_layers_in_every_family(models, name, parts, ends):
    network = models(name).backbone
    found, known = target_names(network, parts), dict(network.named_modules())
    assert all(isinstance(getattr(known[layer], "base_layer", known[layer]), torch.nn.Linear) for layer in found)
    assert {end for end in ends if any(layer.endswith(end) for layer in found)} == ends
    assert "proj_out" not in found and parts[0] in target_modules_of(found)


@pytest.mark.parametrize(("family", "part", "stacks"), [("flux2", "attn2", 2), ("flux2", "attn1", 2), ("wan_i2v", "ff", 2)])
def test_no_stack_of_blocks_is_left_out_whose_layers_have_other_names(family, part, stacks):
    """FLUX.2's single blocks have one projection for all; Wan's feed-forward is an ffn, beside a picture encoder's ff."""
    network = getattr(tiny_pipelines, family)()[0].transformer
    found = target_names(network, (part,))
    assert len({stack_of(name) for name in found}) == stacks
    blocks = [name for name, _ in network.named_modules() if re.fullmatch(r"(single_transformer_)?blocks\.\d+", name)]
    assert blocks
    assert all(any(name.startswith(f"{block}.") for name in found) for block in blocks)


def test_a_pipeline_that_cannot_be_entered_is_refused_by_name(tmp_path):
    for name, said in (
        ("KandinskyCombinedPipeline", r"a KandinskyCombinedPipeline cannot be steered: its call makes no step of a scheduler"),
        ("KandinskyPipeline", r"a KandinskyPipeline needs the input 'image_embeds'"),
        ("SomePipeline", r"the installed diffusers has no SomePipeline"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(TiltingError, match=said):
            tl.load(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(TiltingError, match=r"its model_index.json cannot be read"):
        tl.models.defaults(str(tmp_path))


def test_a_hub_id_is_read_from_the_cache_where_the_hub_does_not_answer(folders, tmp_path, monkeypatch):
    """And refused in one sentence where it is not cached: nothing is tried again for half a minute."""
    from tilting.features import hub

    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_answers", lambda endpoint: bool(asked.append(endpoint)))
    with pytest.raises(TiltingError, match="'some/pipeline': it is neither a folder nor in the hub's cache, and the hub does"):
        tl.load("some/pipeline")
    cached = tmp_path / "models--some--pipeline"
    shutil.copytree(folders("sdxl"), cached / "snapshots" / "c0ffee")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c0ffee")
    assert tl.load("some/pipeline").name == "some/pipeline"
    assert len(set(asked)) == 1


def test_usual_settings_are_the_familys(folders):
    found = {name: tl.models.defaults(folders(name)) for name in MAKERS}
    assert found == {"sdxl": (50, 5.0), "sd3": (28, 7.0), "flux": (28, 3.5), "schnell": (4, 1.0), "pixart": (20, 4.5)}


def test_a_network_without_lora_files_is_not_trained(models):
    with pytest.raises(TiltingError, match="no LoRA files for a PixArtTransformer2DModel"):
        tl.finetune(models("pixart"), PROMPTS, Red(), train_steps=1, steps=3)


@pytest.mark.parametrize("words", [("finetune", "--objective", "ddpo"), ("generate", "--lora", "lora")])
def test_a_network_without_lora_files_is_refused_before_a_weight_is_read(words, folders, tmp_path, monkeypatch, capsys):
    """Of a folder whose weights are gone; another family's is only missed when it is loaded."""
    monkeypatch.chdir(tmp_path)
    Path("lora").mkdir()
    (Path("lora") / "pytorch_lora_weights.safetensors").write_bytes(b"")
    said = {}
    for name in ("pixart", "sd3"):
        shutil.copytree(folders(name), name, ignore=shutil.ignore_patterns("*.safetensors"))
        command, *more = words
        assert main([command, "a fox", "--model", name, *more, "--reward", "jpeg", "--out", "run", "--quiet"]) == 2
        said[name] = capsys.readouterr().err
    assert "no LoRA files for a PixArtTransformer2DModel" in said["pixart"] and "no LoRA files" not in said["sd3"]
    assert not Path("run").exists()


SELECTING = {"codex": tl.presets.codex(particles=2, block=1), "tds": tl.presets.tds(particles=2)}
"""Of the other methods `test_elsewhere` asks it."""


@pytest.fixture
def meta():
    """Tensors made without a device stay without data, so that one that meets the model's own raises."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize("method", list(SELECTING))
def test_every_tensor_of_a_drawing_is_made_where_the_model_is(models, meta, name, method):
    with torch.device("cpu"):
        want = tl.generate(models(name), PROMPTS, Red(), SELECTING[method], steps=3, seed=1)
    assert torch.zeros(1).device.type == "meta"
    got = tl.generate(models(name), PROMPTS, Red(), SELECTING[method], steps=3, seed=1)
    assert got.images.equal(want.images) and got.manifest["images"] == want.manifest["images"]


@pytest.mark.parametrize(("name", "objective"), [("sd3", "draft"), ("flux", "ddpo")])
def test_every_tensor_of_a_training_step_is_made_where_the_model_is(models, meta, monkeypatch, name, objective):
    made, update = getattr(objectives, objective)(), torch.optim.AdamW.step

    def alone(self, *arguments):  # torch's own counter of steps goes by the default device
        with torch.device("cpu"):
            return update(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", alone)

    def step():
        return tl.finetune(models(name), PROMPTS, Red(), made, train_steps=1, steps=3, batch_size=2, rank=2)

    with torch.device("cpu"):
        want = step()
    got = step()
    assert got.history == want.history
    assert all(value.equal(want.lora[key]) and value.device.type == "cpu" for key, value in got.lora.items())


def test_the_commands_take_device_and_precision(folders, tmp_path, capsys):
    from tilting.cli import main

    def draw(*more):
        return main(["generate", "a fox", "--model", folders("sdxl"), "--steps", "3", "--quiet", *more])

    half, full = tmp_path / "half", tmp_path / "full"
    assert draw("--device", "cpu", "--precision", "bf16", "--out", str(half)) == 0
    assert draw("--out", str(full)) == 0
    config = json.loads((half / "manifest.json").read_text())["config"]
    assert (config["device"], config["precision"]) == ("cpu", "bf16")
    pictures = [(folder / "images" / "00000.png").read_bytes() for folder in (half, full)]
    assert pictures[0] != pictures[1]
    assert draw("--device", "cpu", "--out", str(full)) == 0  # the same run, wherever it goes on
    assert draw("--precision", "bf16", "--out", str(full)) == 2
    assert "with another precision" in capsys.readouterr().err
    assert draw("--device", "gpu", "--out", str(tmp_path / "none")) == 2
    assert "device cannot be 'gpu'" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.03), ("fp16", 0.004)])
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "pixart"])
def test_half_precision_draws_nearly_the_same_images(folders, models, name, precision, most):
    model = tl.load(folders(name), precision=precision, **TOLD.get(name, {}))
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert {part.dtype for part in (model.backbone, model.text_encoder)} == {kind} and model.vae.dtype == torch.float32
    with torch.no_grad():
        seen = model.denoiser(PROMPTS, 3.0)(noise(model), model.schedule.grid(4)[1], torch.arange(2))
    assert {part.dtype for part in seen} == {torch.float32}
    draw = [tl.generate(m, PROMPTS, steps=4, cfg=3.0, eta=0.0, latents=noise(m)).images for m in (model, models(name))]
    far = (draw[0] - draw[1]).abs().max()
    assert 0 < far < most
    if name == "pixart":
        return
    tuned = tl.finetune(model, PROMPTS, Red(), train_steps=1, steps=3, batch_size=2, rank=2)
    assert {value.dtype for value in tuned.lora.values()} == {torch.float32} and tuned.history[0]["gradient_norm"] > 0


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_checkpointing_gives_the_same_gradient_from_activations_made_twice(folders, name):
    found, calls = [], []
    for checkpointing in (False, True):
        model = tl.load(folders(name), checkpointing=checkpointing, **TOLD.get(name, {}))
        block = next(part for key, part in model.backbone.named_modules() if key.endswith("transformer_blocks.0"))
        calls.append(0)

        def count(*_):
            calls[-1] += 1

        block.register_forward_pre_hook(count)
        x = noise(model).requires_grad_()
        images = model.decode(model.denoiser(PROMPTS, 3.0)(x, model.schedule.grid(6)[2], torch.arange(2)).x0)
        found.append(torch.autograd.grad(Red()(images, PROMPTS).sum(), x)[0])
    assert found[0].abs().max() > 0 and found[0].allclose(found[1], rtol=1e-4, atol=1e-8)
    assert calls == [1, 2]


def test_a_device_or_precision_that_is_not_there_is_refused(folders):
    with pytest.raises(TiltingError, match="device cannot be 'gpu'"):
        tl.load(folders("sdxl"), device="gpu")
    with pytest.raises(TiltingError, match="there is no device 'cuda:99' here"):
        tl.load(folders("sdxl"), device="cuda:99")
    with pytest.raises(TiltingError, match="precision cannot be 'fp8'; there is: bf16, fp16, fp32"):
        tl.load(folders("sdxl"), precision="fp8")


def test_steps_that_a_scheduler_does_not_make_are_one_sentence(models):
    with pytest.raises(TiltingError, match=r"a StableDiffusionXLPipeline does not take this: .*1001 cannot be larger"):
        tl.generate(models("sdxl"), "a fox", steps=1001)
    with pytest.raises(TiltingError, match="steps must be at least 1"):
        models("sdxl").schedule.grid(0)
