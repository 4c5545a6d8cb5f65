"""Prompts that are longer than what a model reads: their lost words are named, as diffusers names them."""

from __future__ import annotations

import warnings

import pytest
import torch

import tilting as tl
from support.today import LETTERS, words
from tilting.cli import _tell
from tilting.models.text import tell_of_cuts

LONG = " ".join(["a fox on a hill"] * 9) + " under a large moon"


class Reads:
    """A model of these tokenizers."""

    def __init__(self, *of, name="mine"):
        self.name, self.of = name, of

    def tokenizers(self):
        return list(self.of)


def told(model, texts) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tell_of_cuts(model, texts)
    return [str(one.message) for one in seen]


@pytest.fixture(scope="module")
def pocket():
    return tl.load("pocket")


def test_the_words_that_are_lost_are_those_that_diffusers_names(pocket):
    tokenizer = pocket.tokenizer
    most = tokenizer.model_max_length
    whole = tokenizer(LONG)["input_ids"]
    lost = tokenizer.batch_decode([whole[most - 1 : -1]])[0]  # as StableDiffusionPipeline.encode_prompt has it
    (line,) = told(pocket, ["a fox", LONG, LONG])
    assert f"reads {most} tokens of a prompt: it does not see {lost!r} of {LONG[:57]!r}"[:-1] in line and lost.endswith("moon")
    assert told(pocket, ["a fox", ""]) == [] and told(pocket, []) == [] and told(object(), [LONG]) == []
    cut = tokenizer.decode(whole[1 : most - 1])
    assert torch.equal(pocket.encode_prompts([LONG]), pocket.encode_prompts([f"{cut} and anything at all"]))


def test_prompts_that_are_one_to_the_model_are_named(pocket):
    first, second = f"{LONG} in summer", f"{LONG} in winter"
    cut, alike = told(pocket, [first, second, "a fox"])
    assert "and the ends of 1 more" in cut and f"{first!r} and {second!r} are one prompt to 'pocket'" in alike
    assert len(told(pocket, ["A FOX", "a fox"])) == 0  # one to its tokenizer by its own rule, nothing is cut


def test_every_tokenizer_says_what_it_loses():
    """Of a model with two, a prompt that the second still tells apart is not one with another."""
    clip, other = words(), words()
    lines = told(Reads((clip, None), (other, 400)), [LONG, f"{LONG} and more"])
    assert len(lines) == 1 and f"reads {clip.model_max_length} tokens" in lines[0]
    short = told(Reads((clip, 5)), ["a fox on a hill"])
    assert "reads 5 tokens" in short[0] and LETTERS


@pytest.mark.parametrize("way", ["generate", "negative", "finetune"])
def test_whoever_draws_is_told(pocket, way):
    prompt, more = ("a fox", {"negative_prompt": LONG}) if way == "negative" else (LONG, {})

    def draw():
        if way == "finetune":
            return tl.finetune(pocket, prompt, "clip", train_steps=1, steps=1, batch_size=1, rank=1)
        return tl.generate(pocket, prompt, steps=1, cfg=2.0, **more)

    with pytest.warns(UserWarning, match="it does not see"):
        draw()


def test_a_command_says_it_in_a_line(capsys):
    _tell(UserWarning("one\n  line"), UserWarning, "file.py", 3)
    assert capsys.readouterr().err == "tilting: warning: one line\n"


def test_a_reward_that_reads_prompts_says_what_it_does_not_see(pocket):
    clip = tl.rewards.clip()
    with pytest.warns(UserWarning, match=r"'pocket-clip' reads \d+ tokens .* it does not see .*moon'"):
        clip(torch.rand(1, 3, 64, 64), [LONG])
