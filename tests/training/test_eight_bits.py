"""Moments in 8 bits (`--optimizer adamw8bit`), and rewards on a device of their own in training (`--reward-device`)."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from torch import nn

import tilting as tl
from support.finetuning import REWARDS, train
from tilting.cli import main
from tilting.config.training import bytes_trained
from tilting.models.adapt import with_dropout
from tilting.rewards.elsewhere import Elsewhere, elsewhere
from tilting.training import checkpoint
from tilting.training.loop import Optimiser, TrainState


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a file of rewards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(REWARDS)
    return tmp_path


@pytest.mark.parametrize("shape", [(64, 64), (64, 63)])
def test_moments_in_eight_bits_descend_as_adamw_does_and_resume_to_the_bit(tmp_path, shape):
    pytest.importorskip("bitsandbytes")

    def step(state):
        sum((p - 1).square().sum() for p in state.parameters.values()).backward()
        state.optimiser.step()
        state.optimiser.zero_grad()

    torch.manual_seed(0)
    first, made, eight = torch.randn(shape), {}, shape == (64, 64)  # fewer weights than 4096 stay as they are
    for kind in ("adamw", "adamw8bit"):
        parameters = {"a": nn.Parameter(first.clone()), "b": nn.Parameter(first[0].clone())}
        made[kind] = state = TrainState(parameters, Optimiser(rate=0.02, kind=kind).build(parameters))
        for _ in range(20):
            step(state)
        mine = state.optimiser.state[parameters["a"]].values()
        held = sum(v.nbytes for v in mine if isinstance(v, torch.Tensor) and v.numel() >= first.numel())
        assert held == bytes_trained(first.numel(), kind) - 2 * first.nbytes
        assert held == (2 if eight and kind == "adamw8bit" else 8) * first.numel()
    ends = [state.parameters["a"].detach() for state in made.values()]
    far, way = (ends[1] - ends[0]).abs(), (ends[0] - first).abs()
    assert (far.max() > 1e-5) == eight and far.mean() < 0.05 * way.mean()
    checkpoint.write(tmp_path, made["adamw8bit"].saved())
    step(made["adamw8bit"])
    parameters = {name: nn.Parameter(torch.zeros_like(p)) for name, p in made["adamw8bit"].parameters.items()}
    fresh, saved = TrainState(parameters, Optimiser(rate=0.02, kind="adamw8bit").build(parameters)), checkpoint.read(tmp_path)
    assert saved is not None
    fresh.restore(saved)
    step(fresh)
    assert all(torch.equal(p, made["adamw8bit"].parameters[name]) for name, p in fresh.parameters.items())


@pytest.mark.slow
def test_a_run_takes_both_and_goes_on_with_its_reward_on_another_device(here, monkeypatch):
    pytest.importorskip("bitsandbytes")
    asked, call = [], Elsewhere.__call__
    monkeypatch.setattr(Elsewhere, "__call__", lambda self, *given: asked.append(self.device) or call(self, *given))
    words = ("--objective", "draft-k", "--sample-every", "0", "--optimizer", "adamw8bit", "--target-modules", "ff")
    assert train(here / "out", *words, "--reward-device", "cpu", steps=1) == 0
    assert set(asked) == {"cpu"} and train(here / "out", *words, steps=1) == 0
    assert json.loads((here / "out" / "manifest.json").read_text())["config"]["optimizer"] == "adamw8bit"


def test_a_reward_elsewhere_can_be_copied_with_dropout():
    reward = elsewhere(tl.rewards.clip(), "cpu")
    thin = with_dropout(reward, 0.9)
    images, prompts = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), ["a fox", "a cat"]
    assert torch.equal(thin(images, prompts), reward(images, prompts))
    thin.redraw(torch.Generator().manual_seed(0))
    assert not torch.equal(thin(images, prompts), reward(images, prompts))


CONTROL = ("condition", "train", "--objective", "classifier-free", "--data", "x.csv")


@pytest.mark.parametrize("command", [("finetune", "a fox"), ("doctor", "a fox", "--size"), CONTROL])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--optimizer", "adamw8bit"), "pip install 'tilting[quantize]'"),
        (("--optimizer", "adam8bit"), "did you mean 'adamw8bit'?"),
        (("--reward-device", "gpu"), "reward-device cannot be 'gpu'; did you mean 'cuda'?"),
        (("--reward-device", "meta"), "reward-device cannot be 'meta'; there is: auto, cpu, cuda"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_writes_nothing(here, monkeypatch, capsys, command, words, said):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more))
    assert main([*command, *words, *(() if command[0] == "doctor" else ("--out", "out"))]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not (here / "out").exists()
