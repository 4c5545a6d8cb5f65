"""A run that learnt nothing is no success: it stops with a sentence, and is not finished."""

from __future__ import annotations

import json

import pytest
import torch

import tilting as tl
from support.small import write_small
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.objectives.batch import OBJECTIVES
from tilting.training.loop import DETACHED, PATIENCE, SAME

pytestmark = pytest.mark.usefixtures("undrawn")

REWARDS = """
import torch


def detached(images, prompts):
    return images.detach().mean((1, 2, 3))


detached.differentiable = True


def flat(images, prompts):
    return (images * 0).sum((1, 2, 3))


flat.differentiable = True


def trl(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def constant(images, prompts):
    return torch.full((len(images),), 0.1)


def sound(images, prompts):
    return images.mean((1, 2, 3))


sound.differentiable = True
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("nothing") / "small")


@pytest.fixture
def words(small, tmp_path, monkeypatch):
    """A command of a few training steps in a folder of its own, beside a file of rewards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARDS)

    def command(reward, objective, steps):
        whole = ["finetune", "a fox", "--model", str(small), "--reward", f"rewards.py:{reward}", "--objective", objective]
        return [*whole, "--train-steps", str(steps), "--steps", "2", "--batch-size", "4", "--rank", "2", "--out", "out"]

    return command


CASES = [
    *(
        ("detached", objective, DETACHED)
        for objective in ("draft", "draft-k", "draft-lv", "refl", "alignprop", "dpg", "adjoint")
    ),
    *(("flat", objective, DETACHED) for objective in ("draft", "refl")),
    *(("trl", objective, "rewards.py:trl") for objective in ("ddpo", "grpo")),
    *(("constant", objective, SAME) for objective in ("ddpo", "grpo")),
]


@pytest.mark.parametrize(("reward", "objective", "said"), CASES)
def test_it_stops_with_a_sentence_and_is_not_finished(words, tmp_path, capsys, reward, objective, said):
    for _ in range(2):  # nor is it when it goes on
        assert main([*words(reward, objective, 2), "--sample-every", "0"]) == 2
        err = capsys.readouterr().err
        assert said in err and "Traceback" not in err
        assert json.loads((tmp_path / "out" / "manifest.json").read_text())["summary"]["finished"] is False


@pytest.mark.parametrize(("reward", "objective"), [("flat", "draft-k"), ("trl", "ddpo"), ("constant", "grpo")])
def test_a_long_run_stops_among_the_first(words, tmp_path, capsys, reward, objective):
    assert main([*words(reward, objective, 500), "--sample-every", "0", "--quiet"]) == 2
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["summary"]["steps"] == PATIENCE


@pytest.mark.parametrize("objective", ["draft-lv", "ddpo", "grpo"])
def test_a_run_that_learns_is_finished(words, tmp_path, objective):
    assert main([*words("sound", objective, 2), "--sample-every", "0", "--quiet"]) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["summary"]["finished"] is True


def steady(images, prompts):
    return torch.full((len(images),), 0.1)


def by_prompt(images, prompts):
    return torch.tensor([float(len(prompt)) for prompt in prompts])


JUDGED = [name for name, made in OBJECTIVES.items() if not made().needs_gradient and not made.takes_teacher]


@pytest.mark.parametrize("objective", JUDGED)
def test_a_reward_that_tells_no_image_from_another_teaches_no_objective_that_compares_them(small, objective):
    options = {"steps": 2, "batch_size": 4, "rank": 2, "progress": False}
    with pytest.raises(TiltingError, match=SAME):
        tl.finetune(tl.load(str(small)), "a fox", steady, objective, train_steps=1, **options)


@pytest.mark.parametrize("objective", ["grpo", "raft", "crd"])
def test_nor_does_one_of_the_prompt_alone_where_images_of_a_prompt_are_compared(small, objective):
    options = {"steps": 2, "batch_size": 8, "rank": 2, "progress": False}
    with pytest.raises(TiltingError, match=SAME):
        tl.finetune(tl.load(str(small)), ["a fox", "a cat of two"], by_prompt, objective, train_steps=1, **options)
