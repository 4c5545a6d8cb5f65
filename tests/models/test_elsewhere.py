"""On another device (`support.elsewhere`) every method, objective, reward and metric makes what it makes on the CPU.

The device is torch's one private one, which a process that has it never loses, and which changes what torch asks of every
device: so all cases run in one process of their own, and tell how far they came.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tilting as tl
from tilting.models.attach import attach_all
from tilting.models.lora_file import parse_lora
from tilting.objectives import OBJECTIVES
from tilting.objectives.batch import TrainBatch
from tilting.presets import METHODS
from tilting.rewards import REWARDS
from tilting.rng import Identity
from tilting.runs.processes import Processes
from tilting.schedule import Schedule, predict, scaled_linear
from tilting.types import Prediction

TESTS = Path(__file__).parents[1]
LESS = {"particles": 2, "iterations": 2, "block": 1, "neighbours": 2}
BLACK_BOX = {"reno": {"probes": 1}, "codex": {"probes": 1, "block": 1}}
OF_FILES = ("likelihood", "diversity", "gram", "vlm", "http", "ocr", "nsfw", "geneval-strict")
"""Rewards that want files or others' packages; those of files are asked in `tests/rewards`, on the CPU."""
ARGUMENTS = {"color": "color:red"}


class Gaussian:
    """Pictures N(mean, 0.3²), their exact denoiser, where it is told."""

    name, default_steps, default_cfg = "gaussian", 3, 2.0
    schedule = Schedule("epsilon", scaled_linear())
    latent_shape = image_shape = (3, 8, 8)

    def __init__(self, device):
        self.device = torch.device(device)
        self.mean = torch.tensor([0.2, -0.4, -0.4])[:, None, None].to(self.device)

    def denoiser(self, prompts, cfg, negative=""):
        moved = torch.tensor([len(prompt) / 100 for prompt in prompts]).to(self.device)

        def denoise(x, t, rows):
            mean = self.mean + moved[rows].reshape(-1, 1, 1, 1)
            output = t.sigma * (x - t.alpha * mean) / (t.alpha**2 * 0.3**2 + t.sigma**2)
            return Prediction(*predict("epsilon", output, x, t), 0.1 * output)

        return denoise

    def decode(self, latents):
        return (latents / 2 + 0.5).clamp(0, 1)

    encode = staticmethod(lambda images: images * 2 - 1)


def bright(images, prompts):
    return images.square().mean((1, 2, 3))


def dark(images, prompts):
    return -images.mean((1, 2, 3))


bright.differentiable, dark.differentiable = True, False


@cache
def folder() -> str:
    from support.small import write_small

    return str(write_small(Path(tempfile.mkdtemp()) / "small"))


def drawn(method, device, model=None, reward=bright, **more):
    """Pictures of a method, and their rewards."""
    preset = METHODS[method]()
    named = {f.name for f in fields(preset)}
    preset = replace(preset, **{key: value for key, value in (LESS | more).items() if key in named})
    model = model or Gaussian(device)
    start = {"image": torch.rand(1, *model.image_shape, generator=torch.Generator().manual_seed(0))}
    start = start if preset.needs_picture else {}
    made = tl.generate(model, ["a fox", "an owl"], reward, preset, steps=3, progress=False, **start)
    return [made.images, torch.tensor([one["reward"] or 0.0 for one in made.manifest["images"]])]


def by_pipeline(method, device):
    return drawn(method, device, tl.load(folder(), device="cpu").to(device), tl.rewards.clip())


def tuned(objective, device):
    """A LoRA after a step, and its average."""
    made = OBJECTIVES[objective]()
    how = {"train_steps": 1, "steps": 2, "batch_size": max(2, made.group_size), "rank": 1, "ema": 0.5, "lr": 1e-3}
    model = tl.load(folder(), device="cpu").to(device)
    got = tl.finetune(model, ["a fox"], tl.rewards.clip(), made, progress=False, **how)
    assert got.ema is not None
    return [one.cpu() for lora in (got.lora, got.ema.lora) for one in lora.values()]


def climbed(objective, device):
    """What an objective makes of a small batch: its losses, and their slopes."""
    made, model = OBJECTIVES[objective](), Gaussian(device)
    size = max(4, made.group_size)
    who = [Identity(0, f"prompt {i // made.group_size}", i) for i in range(size)]
    theta = torch.full((3, 8, 8), 0.1).to(device).requires_grad_()
    base = model.denoiser([one.prompt for one in who], 1.0)

    def denoise(x, t, rows):
        eps, x0, correction = base(x, t, rows)
        return Prediction(eps - t.alpha * theta, x0 + t.sigma * theta, correction)

    def value(x0, rows):
        return (x0 - theta.detach()).square().mean((1, 2, 3)) + 0.01 * rows.to(x0)

    def critic(x0, rows):
        return value(x0, rows) + theta.mean()

    batch = TrainBatch(denoise, base, denoise, base, value, model.schedule.grid(3), who, (3, 8, 8), made.default_eta)
    batch = replace(batch, device=device, critic=critic, teacher=base, worded=lambda change: value, trained=[theta])
    found = []
    for loss in made(batch):
        found.append(loss.value.detach())
        if loss.value.requires_grad:
            loss.value.backward()
    return [torch.stack(found).cpu(), torch.zeros(1) if theta.grad is None else theta.grad.cpu()]


@cache
def reward_of(name):
    from support.learned import tiny
    from tilting.rewards.spec import build, parse_spec

    return tiny(name, Path(tempfile.mkdtemp())) if REWARDS[name].weights else build([parse_spec(ARGUMENTS.get(name, name))])


def scored(name, device):
    """Values and slopes, in half precision's pictures too; a prompt was asked for on the CPU before."""
    reward, draw = reward_of(name), torch.Generator().manual_seed(1)
    pictures = torch.rand(2, 3, 64, 64, generator=draw).to(device)
    if device != "cpu":
        reward(pictures, ["a fox", "a bird"])
    found = [reward(pictures, ["a fox", "a cat"]), reward(pictures.half(), ["a fox", "an owl"]).float()]
    if reward.differentiable:
        with torch.enable_grad():
            pictures.requires_grad_()
            found += torch.autograd.grad(reward(pictures, ["a fox", "a cat"]).sum(), pictures)
    return [one.detach().cpu() for one in found]


def shared(device):
    """What a process without rows has of one that has some: scores of the host, latents of the device."""
    sent: list[bytes] = []

    class One(Processes):
        def all_gather_bytes(self, data):
            sent.append(data)
            return sent

    scores, latents = torch.arange(2.0, dtype=torch.float64, device="cpu"), torch.ones(2, 3).to(device)
    One(0, 2).map_rows(lambda x: (scores, x), latents)
    found = One(1, 2).all_gather_rows((), latents.device)
    assert [one.device.type for one in found] == ["cpu", torch.device(device).type]
    return list(found)


@cache
def learned_inputs() -> str:
    place = tempfile.mkdtemp()
    how = {"train_steps": 1, "steps": 2, "batch_size": 1, "rank": 1, "learn": ("lora", "guidance", "negative"), "cfg": 2.0}
    tl.finetune(tl.load(folder(), device="cpu"), ["a fox"], bright, "draft", progress=False, **how).save(place)
    return place


def with_learned_inputs(device):
    model = attach_all(tl.load(folder(), device="cpu").to(device), [parse_lora(learned_inputs())], 2)
    return [tl.generate(model, ["a fox"], steps=2, cfg=2.0, progress=False).images]


@cache
def classifier():
    images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    words = ["yes" if bright else "no" for bright in images.mean((1, 2, 3)) > images.mean()]
    return tl.condition_fit(
        images, words, "bright", kind="cnn", widths=(4, 4, 8), epochs=1, batch_size=8, progress=False
    ).classifier


def controlled(device):
    """A control's pictures after a step of its training."""
    model, how = tl.load(folder(), device="cpu").to(device), {"train_steps": 1, "steps": 2, "batch_size": 2, "rank": 1}
    made = tl.condition_train(model, classifier(), ["a fox", "a cat"], progress=False, **how)
    return [tl.condition_sample(made.control, ["a fox"], {"bright": "yes"}, steps=2, progress=False).images]


CASES: dict[str, Any] = {f"method {name}": partial(drawn, name) for name in METHODS}
CASES |= {f"black box {name}": partial(drawn, name, reward=dark, **more) for name, more in BLACK_BOX.items()}
CASES |= {f"pipeline {name}": partial(by_pipeline, name) for name in ("codex", "sdedit")}
CASES |= {f"objective {name}": partial(climbed, name) for name in OBJECTIVES}
CASES |= {f"training {name}": partial(tuned, name) for name in ("dpg",)}
CASES |= {"rows of processes": shared, "learned sampler inputs": with_learned_inputs, "control": controlled}
CASES |= {f"reward {name}": partial(scored, name) for name in REWARDS if name not in OF_FILES}


def tried(case) -> str:
    """What is wrong with a case on the other device; "" where nothing is."""
    from support.elsewhere import NAME, Elsewhere

    want = case("cpu")
    try:
        with Elsewhere():
            got = [one.cpu() for one in case(NAME)]
    except Exception as error:
        frames = [f for f in traceback.extract_tb((error.__cause__ or error).__traceback__) if "elsewhere" not in f.filename]
        return f"{type(error).__name__}: {str(error)[:300]} ({frames[-1].filename}:{frames[-1].lineno})"
    far = max(((a - b).abs().max() / max(1.0, b.abs().max())).item() for a, b in zip(got, want, strict=True))
    return "" if far < 1e-3 else f"it is {far:g} away"


def main(names) -> None:
    warnings.simplefilter("ignore")
    for name in names or CASES:
        print(json.dumps([name, tried(CASES[name])]), flush=True)


@pytest.fixture(scope="module")
def told():
    here = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run([sys.executable, __file__], env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_same_elsewhere(told, case):
    assert told[case] == ""


if __name__ == "__main__":
    main(sys.argv[1:])
