"""Training in every precision and where it is told to: one meaning in `finetune`, `doctor`, `condition train` and Python.

Models are a few thousand random weights; gradients in half precision are compared with those of float32.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tilting as tl
from support.commands import manifest, refused
from support.small import bright_fit
from tilting.cli import main
from tilting.conditioning.trainer import make_control_trainer
from tilting.config.finetune import resolve_finetune
from tilting.errors import TiltingError
from tilting.features.fitted import save_classifier
from tilting.models.lora_weights import read_lora
from tilting.objectives import adjoint, ddpo, draft, draft_k
from tilting.training.doctor import doctor
from tilting.training.folder import read_lines
from tilting.training.half import in_range, ranged
from tilting.training.processes import Engine, over
from tilting.training.run import Parts, load_parts
from tilting.training.trainer import make_trainer

pytestmark = pytest.mark.usefixtures("undrawn")

PROMPTS = ["a fox", "a cat"]
REWARD = (
    "def red(images, prompts):\n    return images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))\nred.differentiable = True\n"
)
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Red:
    """How red images are, times a factor."""

    name, differentiable = "red", True

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, images, prompts):
        assert images.dtype == torch.float32
        return self.factor * (images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2)))


@pytest.fixture(scope="module")
def models(folder):
    return {name: tl.load(str(folder), precision=name) for name in KINDS}


@pytest.fixture(scope="module")
def fit(models):
    return bright_fit(models["fp32"]).classifier


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "r.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def launcher(monkeypatch):
    """Says what a launcher says of mixed precision; accelerate hears it anew."""
    from accelerate.state import AcceleratorState

    def say(mixed):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", mixed)

    yield say
    AcceleratorState._reset_state(reset_partial_state=True)


def words(folder, out, *more):
    return [
        "finetune",
        *PROMPTS,
        "--model",
        str(folder),
        "--reward",
        "r.py:red",
        "--train-steps",
        "2",
        "--steps",
        "3",
        "--cfg",
        "2",
        "--batch-size",
        "2",
        "--rank",
        "2",
        "--sample-images",
        "1",
        "--quiet",
        "--out",
        str(out),
        *more,
    ]


def python(model, factor=1.0, **more):
    return tl.finetune(model, PROMPTS, Red(factor), train_steps=2, steps=3, cfg=2.0, batch_size=2, rank=2, **more)


# One meaning


@pytest.mark.parametrize("precision", KINDS)
def test_the_command_is_python_with_a_model_of_that_precision(here, folder, models, precision):
    """The same lines and the same float32 LoRA, bit for bit; its samples before training are those that generate draws."""
    assert main(words(folder, "run", "--precision", precision, "--device", "cpu")) == 0
    tuned, rows, state = python(models[precision]), read_lines(here / "run" / "metrics.jsonl"), read_lora("run")
    mine = [{k: row[k] for k in row if k not in ("judge", "sample_reward")} for row in rows]
    assert mine == tuned.history
    assert {value.dtype for value in tuned.lora.values()} == {torch.float32}
    assert all(value.equal(state[key]) for key, value in tuned.lora.items())
    assert max(v.abs().max() for k, v in state.items() if "lora.up" in k) > 1e-5
    model = models[precision]
    assert {p.dtype for name, p in model.unet.named_parameters() if ".lora_" not in name} == {KINDS[precision]}
    assert {p.dtype for name, p in model.unet.named_parameters() if ".lora_" in name} == {torch.float32}
    assert model.vae.dtype == torch.float32
    model.unet.delete_adapters("tilting")
    drawn = tl.generate(model, PROMPTS, steps=3, cfg=2.0, eta=0.0).images
    assert manifest(here / "run")["summary"]["samples"][0]["sample_reward"] == pytest.approx(
        Red()(drawn, PROMPTS).mean().item(), abs=1e-7
    )


def test_fp32_is_what_is_trained_in_where_nothing_is_said(here, folder):
    assert main(words(folder, "said", "--precision", "fp32", "--device", "cpu")) == main(words(folder, "unsaid")) == 0
    said, unsaid = ((here / name / "metrics.jsonl").read_bytes() for name in ("said", "unsaid"))
    assert said == unsaid
    assert resolve_finetune({"prompts": PROMPTS}).precision == "fp32"


def test_a_run_goes_on_anywhere_but_in_no_other_precision(here, folder, capsys, launcher):
    assert main(words(folder, "run", "--precision", "bf16")) == 0
    config = manifest(here / "run")["config"]
    assert (config["device"], config["precision"], config["mixed-precision"]) == ("auto", "bf16", None)
    assert main(words(folder, "run", "--precision", "bf16", "--device", "cpu")) == 0
    capsys.readouterr()
    assert 'another precision ("bf16" there, "fp32" now)' in refused(capsys, *words(folder, "run"))
    launcher("bf16")
    assert "another mixed-precision" in refused(capsys, *words(folder, "run", "--precision", "bf16"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--precision", "fp8"), "precision cannot be 'fp8'; there is: bf16, fp16, fp32"),
        (("--device", "gpu"), "device cannot be 'gpu'"),
        (("--device", "cuda:99"), "there is no device 'cuda:99' here"),
    ],
)
def test_refusals_are_those_of_generate(here, folder, capsys, more, said):
    asked = words(folder, "out", *more)
    control = ["condition", "train", *PROMPTS, "--model", str(folder), "--classifier", "r.py:red", "--out", "out", *more]
    for command in (asked, ["doctor", *asked[1:]], control):
        assert said in refused(capsys, *command)
    assert not (here / "out").exists()


# A launcher


def accelerate_of(mixed="no", processes=1, device="cpu"):
    return SimpleNamespace(
        device=torch.device(device), num_processes=processes, process_index=0, mixed_precision=mixed, reduce=None, gather=None
    )


@pytest.mark.parametrize("mixed", ["bf16", "fp16"])
def test_a_launchers_mixed_precision_is_autocast_around_a_network_in_fp32(here, folder, models, launcher, mixed):
    launcher(mixed)
    assert main(words(folder, "run")) == 0
    rows = read_lines(here / "run" / "metrics.jsonl")
    assert manifest(here / "run")["config"]["mixed-precision"] == mixed
    engine = Engine(context=lambda: torch.autocast("cpu", KINDS[mixed]), half=mixed == "fp16")
    run = make_trainer(models["fp32"], PROMPTS, Red(), steps=3, cfg=2.0, batch_size=2, rank=2, engine=engine)
    assert [row["loss"] for row in rows] == [row.numbers["loss"] for row in run.steps(2)]
    assert rows[0]["loss"] != python(models["fp32"]).history[0]["loss"]


def test_a_launchers_fp16_keeps_small_gradients_too(models):
    def autocast():
        return torch.autocast("cpu", torch.float16)

    lines = []
    for engine in (Engine(), Engine(context=autocast, half=True)):
        run = make_trainer(
            models["fp32"], PROMPTS, Red(1e-6), draft_k(1), steps=3, cfg=2.0, batch_size=2, rank=2, engine=engine
        )
        lines.append(next(iter(run.steps(1))).numbers)
    full, half = lines
    assert full["gradient_norm"] > 0 and half["gradient_norm"] == pytest.approx(full["gradient_norm"], rel=0.02)
    assert half["gradient_norm"] != full["gradient_norm"]


@pytest.mark.parametrize(("count", "device", "where"), [("1", "cpu", "cpu"), ("1", "auto", "auto"), ("2", "auto", "cpu")])
def test_a_model_is_loaded_where_it_trains_or_where_several_processes_take_it_from(monkeypatch, count, device, where):
    """Not on the first GPU, which was what a plain load takes."""
    seen = []
    config = resolve_finetune({"prompts": PROMPTS, "reward": ["jpeg"], "objective": "ddpo", "device": device, "batch-size": 2})
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.setattr("tilting.training.run.load", lambda name, device="auto", *_, **__: seen.append(device))
    load_parts(config)
    assert seen == [where]


def test_two_precisions_and_one_device_for_two_processes_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(TiltingError, match="precision bf16 and the launcher's mixed precision fp16 are two"):
        resolve_finetune({"prompts": PROMPTS, "precision": "bf16"})
    assert resolve_finetune({"prompts": PROMPTS, "precision": "fp16"}).precision == "fp16"
    with pytest.raises(TiltingError, match="mixed precision is fp8"):
        over(accelerate_of("fp8"))
    with pytest.raises(TiltingError, match="gives 2 processes their devices: leave --device cpu out"):
        over(accelerate_of(processes=2, device="meta"), "cpu")
    assert over(accelerate_of(processes=2), "cpu").device == over(accelerate_of(device="meta"), "cpu").device
    assert over(accelerate_of(device="meta")).device.type == "meta"
    assert [over(accelerate_of(mixed)).half for mixed in ("no", "bf16", "fp16")] == [False, False, True]


# fp16


def test_gradients_in_range_are_those_of_autograd_to_the_bit():
    """A power of two is exact: in float32 inputs and parameters come out as they do plainly, unused ones too."""
    torch.manual_seed(0)
    x, w, spare = (
        torch.randn(4, 3, requires_grad=True),
        torch.randn(3, 3, requires_grad=True),
        torch.ones(2, requires_grad=True),
    )

    def function(x):
        y = torch.tanh(x @ w)
        return y, y.square() + x, torch.zeros_like(x)

    for factor in (1.0, 1e-20, 3e12):
        plain, near = (
            torch.autograd.grad((factor * v[0] + v[1] * factor).sum(), (x, w, spare), allow_unused=True)
            for v in (function(x), in_range(function, x, (w, spare)))
        )
        assert near[2] is None and plain[2] is None
        assert all(a.equal(b) and a.any() for a, b in zip(plain[:2], near[:2], strict=True))
    with torch.no_grad():
        assert not in_range(function, x, (w,))[0].requires_grad


def gradient(model, objective, factor, near=True):
    run = make_trainer(model, PROMPTS, Red(factor), objective, steps=4, cfg=2.0, batch_size=2, rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in run.state.parameters.items():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    parameters = list(run.state.parameters.values())
    world = replace(run.batches(0, {}), trained=parameters)
    for loss in objective(ranged(world) if near else world):
        loss.value.backward()
    return torch.cat([p.grad.flatten() for p in parameters]).double()


@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e4])
@pytest.mark.parametrize("objective", [draft(), draft_k(1), adjoint(beta=1.0), ddpo()], ids=lambda objective: objective.name)
def test_slopes_of_any_size_are_right_in_half_precision(models, objective, factor):
    """LoRA gradients within 2 % of float32's in fp16 and 10 % in bf16, whose numbers are eight times as coarse."""
    want = gradient(models["fp32"], objective, factor, near=False)
    for precision, most in (("fp16", 0.02), ("bf16", 0.1)):
        found = gradient(models[precision], objective, factor, near=precision == "fp16")
        assert 0 < (found - want).norm() < most * want.norm()
    if factor == 1e-6 and objective.name == "draft-k":  # what fp16 alone makes of it
        assert gradient(models["fp16"], objective, factor, near=False).norm() < 0.5 * want.norm()


def test_training_in_fp16_keeps_gradients_that_fp16_alone_would_lose(models):
    """A reward so small that its slopes are nothing in fp16: gradients of a run within 2 % of fp32's."""
    full, half = (python(models[name], factor=1e-6, objective=draft_k(1)).history for name in ("fp32", "fp16"))
    for a, b in zip(full, half, strict=True):
        assert a["gradient_norm"] > 0 and b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=0.02)
        assert b["skipped"] == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_ratios_are_one_and_kl_is_zero_at_first_in_half_precision_too(models, precision):
    rows = python(models[precision], objective=ddpo(kl=0.1)).history
    assert [row["ratio_far"] for row in rows] == [0.0, 0.0]
    assert rows[0]["kl_step"] == 0.0 < rows[1]["kl_step"]


def test_a_run_in_fp16_resumes_to_the_same_bits(here, folder):
    asked = ("--precision", "fp16", "--checkpoint-every", "1", "--sample-every", "0")
    assert main(words(folder, "whole", *asked)) == main(words(folder, "cut", *asked)) == 0
    last = sorted((here / "cut" / "checkpoints").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    held = json.loads((here / "cut" / "manifest.json").read_text())
    (here / "cut" / "manifest.json").write_text(json.dumps({**held, "summary": {**held["summary"], "finished": False}}))
    assert main(words(folder, "cut", *asked)) == 0
    for name in ("metrics.jsonl", "lora/pytorch_lora_weights.safetensors"):
        assert (here / "cut" / name).read_bytes() == (here / "whole" / name).read_bytes()


# Learned inputs, controls, doctor


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_learned_inputs_and_controls_are_float32_beside_a_network_in_half(models, fit, precision):
    model = models[precision]
    tuned = python(model, learn=("lora", "guidance", "negative"), objective=draft_k(2))
    assert {p.dtype for p in tuned.inputs.parameters()} == {torch.float32}
    assert tuned.inputs.scales() != [2.0] * 3 and tuned.inputs.negative.last.weight.any()
    for place in ("latent", "time"):
        settings = {"gamma": 7.0, "kl": 0.5, "truncation": "all", "rank": 2, "steps": 2, "cfg": 2.0, "batch_size": 2}
        run = make_control_trainer(model, [fit], PROMPTS, place=place, **settings)
        rows = list(run.steps(2))
        assert [row.skipped for row in rows] == [None, None] and rows[1].numbers["gradient_norm"] > 0
        assert {p.dtype for p in run.state.parameters.values()} == {torch.float32}
        assert all(p.any() for name, p in run.state.parameters.items() if "tables" in name)
        model.unet.delete_adapters("tilting")


def test_condition_train_takes_device_and_precision(here, folder, fit, capsys):
    save_classifier(fit, here / "FIT")
    asked = [
        "condition",
        "train",
        *PROMPTS,
        "--model",
        str(folder),
        "--classifier",
        "FIT",
        "--train-steps",
        "1",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--rank",
        "2",
        "--cfg",
        "2",
        "--quiet",
        "--out",
        "CTL",
        "--device",
        "cpu",
    ]
    assert main([*asked, "--precision", "fp16"]) == 0
    config = manifest(here / "CTL")["config"]
    assert (config["device"], config["precision"]) == ("cpu", "fp16")
    capsys.readouterr()
    assert 'another precision ("fp16" there, "fp32" now)' in refused(capsys, *asked)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_doctor_finds_a_run_in_half_precision_sound_wherever_tensors_are_made(models, precision):
    """Under a default device that holds nothing: what forgets where it belongs raises."""
    config = resolve_finetune({"prompts": PROMPTS, "steps": 3, "rank": 2, "batch-size": 2, "precision": precision, "cfg": 2})
    torch.set_default_device("meta")
    try:
        found = doctor(config, parts=lambda config: Parts(models[precision], Red(), None, None))
    finally:
        torch.set_default_device(None)
    assert [name for name, check in found["checks"].items() if not check["ok"]] == []
    name = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    assert f"network {name}, latents float32, LoRA float32" in found["checks"]["precision"]["line"]
