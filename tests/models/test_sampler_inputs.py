"""Learned guidance, learned negative prompt, the critic of DPG and the diversity term, on pocket and by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import tilting as tl
from support.finetuning import REWARDS, Bright, numbers, train
from support.loras import lora_off
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.models.attach import attach_all
from tilting.models.lora import load_lora
from tilting.models.lora_file import parse_lora
from tilting.models.lora_weights import read_lora
from tilting.models.sampler_inputs import Guidance, Negative, SamplerInputs, begin, read_inputs, save_inputs
from tilting.objectives import draft, draft_k
from tilting.schedule import predict
from tilting.training.folder import read_lines
from tilting.training.trainer import make_trainer

SMALL = {"steps": 2, "batch_size": 2, "rank": 2, "cfg": 3.0}
WORDS = ["a fox", "a cat"]


@pytest.fixture(scope="module")
def pocket():
    return tl.load("pocket")


@pytest.fixture(autouse=True)
def clean(pocket):
    yield
    for name in list(getattr(pocket.unet, "peft_config", {})):
        pocket.unet.delete_adapters(name)


@pytest.fixture
def here(tmp_path, monkeypatch, pocket):
    (tmp_path / "r.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tilting.training.run.load", lambda name, *more, **how: pocket)
    monkeypatch.setattr("tilting.generation.run.load", lambda name, *more, **how: pocket)
    return tmp_path


def spread(module, scale=0.3):
    """Its parameters, moved."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return module


def read(model, texts):
    ids = model.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return model.text_encoder(ids)[0]


def drawn(model, seed=0, **options):
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(seed))
    return tl.generate(model, WORDS, latents=noise, **{"steps": 2, "cfg": 3.0, "eta": 0.0, **options}).images


# Guidance


def test_guidance_is_linear_between_its_knots_and_stretches_to_other_grids(pocket):
    w = Guidance([900, 500, 100], [3.0, 7.0, 5.0])  # in the order of sampling
    for t, wanted in ((900, 3.0), (1000, 3.0), (500, 7.0), (700, 5.0), (300, 6.0), (100, 5.0), (0, 5.0), (200, 5.5)):
        assert w(t).item() == pytest.approx(wanted)
    assert SamplerInputs(w).scales() == [3.0, 7.0, 5.0]
    grid = pocket.schedule.grid(4)
    line = Guidance([999, 1], [999.0, 1.0])
    again = begin(pocket, ("guidance",), grid, 4.0, start=SamplerInputs(line))
    assert again.scales() == pytest.approx([min(max(t.t, 1), 999) for t in grid[:-1]])
    assert begin(pocket, ("guidance",), grid, 4.0).scales() == [4.0] * 4
    assert begin(pocket, ("lora",), grid, 4.0) is None


def test_inputs_begin_as_the_model_and_follow_the_formula(pocket):
    """eps by hand: e_neg + MLP(attention(e)) through torch's own attention, and w(t) in the place of the scale."""
    grid = pocket.schedule.grid(3)
    inputs = begin(pocket, ("guidance", "negative"), grid, 3.0, seed=1)
    base = drawn(pocket, steps=3)
    assert torch.equal(drawn(inputs.on(pocket), steps=3), base)
    spread(inputs)
    assert torch.equal(drawn(inputs.on(pocket, 0.0), steps=3), base)
    assert (drawn(inputs.on(pocket), steps=3) - base).abs().max() > 0.01
    x, t = torch.randn(2, *pocket.latent_shape, generator=torch.Generator().manual_seed(0)), grid[1]
    text, empty, width = read(pocket, WORDS), read(pocket, ["blue"]), inputs.negative.width
    attention = nn.MultiheadAttention(width, inputs.negative.heads, batch_first=True)
    attention.load_state_dict(
        {
            "in_proj_weight": inputs.negative.mix.weight,
            "in_proj_bias": inputs.negative.mix.bias,
            "out_proj.weight": inputs.negative.join.weight,
            "out_proj.bias": inputs.negative.join.bias,
        }
    )
    seen = attention(text, text, text)[0]
    push = inputs.negative.last(nn.functional.gelu(inputs.negative.inner(seen)))
    with torch.no_grad():
        time = torch.full((2,), int(t.t))
        without, conditional = (pocket.unet(x, time, one, return_dict=False)[0] for one in (empty + 0.5 * push, text))
        w = 3.0 + 0.5 * (inputs.guidance.weight.flip(0)[1] - 3.0)
        wanted = predict(pocket.schedule.kind, without + w * (conditional - without), x, t)[0]
        found = inputs.on(pocket, 0.5).denoiser(WORDS, 3.0, "blue")(x, t, torch.arange(2)).eps
    assert torch.allclose(found, wanted, atol=1e-4)
    assert push.abs().max() > 0.1


def test_the_gradient_of_the_scales_is_that_of_finite_differences_and_a_step_follows_it(pocket):
    run = make_trainer(pocket, WORDS, Bright(), draft(), lr=1e-3, learn=("guidance",), **SMALL)
    assert list(run.state.parameters) == ["guidance.weight"]
    w = run.inputs.guidance.weight

    def loss():
        return sum(loss.value for loss in run.objective(run.batches(0, {})))

    loss().backward()
    slope = w.grad.clone()
    for k in range(2):
        values = []
        for h in (0.02, -0.02):
            with torch.no_grad():
                w[k] += h
                values.append(loss().item())
                w[k] -= h
        assert (values[0] - values[1]) / 0.04 == pytest.approx(slope[k].item(), rel=0.05)
    before = w.detach().clone()
    w.grad = None
    next(iter(run.steps(1)))
    assert torch.allclose(w - before, -0.05 * slope.sign(), rtol=1e-3)  # Adam's first step at 50 times the rate, undecayed
    assert all((v == 0).all() for k, v in run.lora().items() if ".lora.up." in k)


def test_a_truncated_gradient_reaches_the_scale_of_its_step_only(pocket):
    run = make_trainer(pocket, WORDS, Bright(), draft_k(1), learn=("lora", "guidance"), **SMALL)
    before = run.inputs.scales()
    next(iter(run.steps(1)))
    first, last = run.inputs.scales()
    assert first == before[0] and last != before[1]


def test_learned_inputs_are_saved_with_a_lora_that_plain_diffusers_loads(pocket, tmp_path):
    from diffusers import StableDiffusionPipeline

    from tilting.models.words import POCKET

    tuned = tl.finetune(
        pocket, WORDS, Bright(), draft(), train_steps=2, lr=1e-2, learn=("lora", "guidance", "negative"), **SMALL
    )
    mine = drawn(tuned.inputs.on(pocket))
    tuned.save(tmp_path / "lora")
    pocket.unet.delete_adapters("tilting")
    base = drawn(pocket)
    again = attach_all(pocket, [parse_lora(str(tmp_path))], 2)
    assert torch.allclose(drawn(again), mine, atol=1e-5)
    assert (mine - base).abs().max() > 0.01
    with lora_off(pocket.unet):
        assert (drawn(again) - base).abs().max() > 1e-4  # the inputs alone
    pocket.unet.delete_adapters("stacked0")
    assert torch.equal(drawn(attach_all(pocket, [parse_lora(f"{tmp_path}=0")], 2)), base)
    with pytest.raises(TiltingError, match="both learned the sampler's inputs"):
        attach_all(pocket, [parse_lora(str(tmp_path))] * 2, 2)
    # diffusers sees the LoRA alone
    pocket.unet.delete_adapters("stacked0")
    load_lora(pocket.unet, read_lora(tmp_path), "mine")
    noise = torch.randn(1, *pocket.latent_shape, generator=torch.Generator().manual_seed(0))
    pipe = StableDiffusionPipeline.from_pretrained(POCKET, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(tmp_path / "lora"))
    theirs = pipe("a fox", latents=noise, num_inference_steps=2, guidance_scale=3.0, eta=0.0, output_type="pt").images
    ours = tl.generate(pocket, ["a fox"], latents=noise, steps=2, cfg=3.0, eta=0.0).images
    assert (ours - theirs).abs().max() < 1e-4


def test_inputs_that_are_not_ours_are_refused(pocket, tmp_path):
    assert read_inputs(tmp_path) is None
    save_inputs(SamplerInputs(Guidance([3, 1], [2.0, 4.0]), Negative(8)), tmp_path)
    back = read_inputs(tmp_path)
    assert back.scales() == [2.0, 4.0] and back.guidance.times == [1.0, 3.0]
    with pytest.raises(TiltingError, match="another model"):
        back.on(pocket)
    (tmp_path / "sampler_inputs.json").write_text('{"guidance": {"times": [1, 2, 3]}}')
    with pytest.raises(TiltingError, match="not learned sampler inputs"):
        read_inputs(tmp_path)


# The command


def test_the_command_learns_resumes_and_draws_with_what_it_learned(here, monkeypatch, capsys):
    words = (
        "--objective",
        "draft",
        "--learn",
        "lora,guidance,negative",
        "--diversity",
        "euclid=0.5",
        "--sample-every",
        "0",
        "--checkpoint-every",
        "1",
        "--cfg",
        "3",
    )
    monkeypatch.setenv("STOP_AT", "0")
    assert train("whole", *words, reward="r.py:interrupted") == 0
    monkeypatch.setenv("STOP_AT", "2")
    assert train("cut", *words, reward="r.py:interrupted") == 130
    monkeypatch.setenv("STOP_AT", "0")
    assert train("cut", *words, reward="r.py:interrupted") == 0
    assert numbers(here / "cut") == numbers(here / "whole")
    for name in ("sampler_inputs.safetensors", "sampler_inputs.json"):
        assert (here / "cut" / "lora" / name).read_bytes() == (here / "whole" / "lora" / name).read_bytes()
    assert all(row["dissimilarity"] > 0 for row in read_lines(here / "whole" / "metrics.jsonl"))
    scales = json.loads((here / "whole" / "manifest.json").read_text())["summary"]["guidance"]
    assert len(scales) == 3 and all(0 < abs(w - 3) < 0.2 for w in scales)
    assert scales == read_inputs(here / "whole" / "lora").scales()
    # a LoRA file cannot hold them
    capsys.readouterr()
    assert main(["lora", "scale", "whole", "0.5", "--out", "half"]) == 2
    assert "learned the sampler's inputs too" in capsys.readouterr().err and not (here / "half").exists()
    assert main(["lora", "info", "whole", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == ["guidance", "negative"]
    # further, with the scales held
    assert train("next", "--init-lora", "whole", "--objective", "draft", "--cfg", "3", "--sample-every", "0", steps=1) == 2
    capsys.readouterr()
    assert (
        main(
            [
                "finetune",
                "a fox",
                "--out",
                "next",
                "--reward",
                "r.py:bright",
                "--train-steps",
                "1",
                "--batch-size",
                "1",
                "--steps",
                "3",
                "--init-lora",
                "whole",
                "--cfg",
                "3",
                "--sample-every",
                "0",
                "--quiet",
            ]
        )
        == 0
    )
    assert read_inputs(here / "next" / "lora").scales() == pytest.approx(scales, abs=1e-5)
    draw = ["generate", "a fox", "--steps", "2", "--cfg", "3", "--quiet"]
    assert main([*draw, "--lora", "whole", "--out", "with"]) == 0
    assert main([*draw, "--out", "without"]) == 0
    with_it, without = ((here / out / "images" / "00000.png").read_bytes() for out in ("with", "without"))
    assert with_it != without
    assert len(json.loads((here / "with" / "manifest.json").read_text())["config"]["lora-sha256"]) == 2
