"""Prompts of a training run: drawn as often as they are written, encoded when they are drawn, remembered within bounds."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import tilting as tl
from tilting.conditioning.batches import ControlBatches
from tilting.config.condition_train import TrainConfig
from tilting.config.finetune import FinetuneConfig
from tilting.models import text
from tilting.models.labels import Augmented, LabelEmbedding
from tilting.models.text import bytes_of, distinct, remembering
from tilting.training.batches import Batches, batch_identities
from tilting.training.processes import Engine

MANY = [f"a fox number {i}" for i in range(3000)]


class Counting:
    """Pocket, and the texts that its encoder saw."""

    def __init__(self):
        self.model, self.seen = tl.load("pocket"), []
        encode = self.model._encode

        def counted(texts):
            self.seen += texts
            return encode(texts)

        self.model._encode = counted


@pytest.fixture
def counting():
    return Counting()


def batches(counting: Counting, prompts: list[str], kind: str = "finetune", **options) -> Batches:
    if kind == "finetune":
        config = FinetuneConfig.resolve({"prompts": prompts, "steps": 2, "batch-size": 4, **options})
        return Batches(counting.model, counting.model.unet, config, Engine())
    config = TrainConfig(tuple(prompts), steps=2, batch_size=4)
    augmented = Augmented(counting.model, LabelEmbedding({"a": 2}, counting.model.latent_shape[0]))
    return ControlBatches(counting.model, counting.model.unet, config, Engine(), augmented=augmented, classifiers={}, gamma=1.0)


@pytest.mark.parametrize("kind", ["finetune", "control"])
def test_prompts_are_encoded_when_they_are_drawn_and_forgotten_within_bounds(counting, monkeypatch, kind):
    made = batches(counting, MANY, kind)
    assert counting.seen == []
    made(0, {})
    each = max(map(bytes_of, made._texts.values()))
    drawn = {w.prompt for w in batch_identities(MANY, 0, 0, 4, 1)}
    assert Counter(counting.seen) == dict.fromkeys({*drawn, ""}, 1)
    for module in ("tilting.training.batches", "tilting.conditioning.batches"):
        monkeypatch.setattr(f"{module}.KEPT", 6 * each)
    for step in range(1, 12):
        made(step, {})
        assert len(made._texts) <= 6 and "" in made._texts and sum(map(bytes_of, made._texts.values())) <= 6 * each
    assert Counter(counting.seen)[""] == 1 and len(counting.seen) == 12 * 4 + 1
    assert made.text_bytes == 6 * each


def test_what_is_bounded_is_never_less_than_a_batch(counting, monkeypatch):
    monkeypatch.setattr("tilting.training.batches.KEPT", 1)
    made = batches(counting, MANY)
    batch = made(0, {})
    assert len(made._texts) == 5 and made.text_bytes == 5 * bytes_of(made._texts[""])
    small = batches(Counting(), ["a fox", "a cat"])
    small(0, {})
    assert small.text_bytes <= 3 * bytes_of(small._texts[""]) and batch.who


def test_a_forgotten_prompt_comes_back_the_same_to_the_last_digit(counting, monkeypatch):
    """So a run that is resumed, whose memory is empty, is the same run."""
    x = torch.randn(4, *counting.model.latent_shape, generator=torch.Generator().manual_seed(0))

    def predicted(made: Batches, step: int) -> torch.Tensor:
        batch = made(step, {})
        with torch.no_grad():
            return batch.denoise(x, batch.grid[0], batch.rows).eps

    whole = batches(counting, MANY[:12])
    wanted = [predicted(whole, step) for step in range(4)]
    assert torch.equal(predicted(batches(counting, MANY[:12]), 3), wanted[3])
    monkeypatch.setattr("tilting.training.batches.KEPT", 1)
    assert all(torch.equal(predicted(batches(counting, MANY[:12]), step), wanted[step]) for step in range(4))


def test_a_prompt_counts_as_often_as_it_is_written(counting):
    prompts = ["a fox"] * 9 + ["a cat"]
    drawn = Counter(w.prompt for step in range(50) for w in batch_identities(prompts, 0, step, 10, 1))
    assert drawn == {"a fox": 450, "a cat": 50}  # without replacement, as far as they go
    made = batches(counting, prompts, **{"batch-size": 10})
    who = made(3, {}).who
    assert Counter(w.prompt for w in who) == {"a fox": 9, "a cat": 1} and len(set(who)) == 10
    assert sorted(counting.seen) == ["", "a cat", "a fox"]


def test_what_is_remembered_is_what_was_asked_for_last():
    known: dict = {}

    def ask(*texts: str, keep: int | None = None) -> list[str]:
        seen: list[str] = []

        def encode(texts):
            seen.extend(texts)
            return torch.zeros(len(texts), 1, 4)

        with remembering(known, keep):
            assert distinct(texts, encode, torch.device("cpu")).shape == (len(texts), 1, 4)
        return seen

    assert ask("a", "b", "c", keep=48) == ["a", "b", "c"] and ask("a", "b", "c", keep=48) == []
    assert ask("a", "d", keep=48) == ["d"] and list(known) == ["c", "a", "d"]
    assert ask("a", keep=0) == [] and list(known) == ["a"]
    assert ask("e") == ["e"] and list(known) == ["e"] and text.KEPT > 0
