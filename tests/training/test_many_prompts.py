"""Prompts of a training run: drawn as often as they are written, encoded when they are drawn, remembered within bounds."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import tilting as tl
from tilting.conditioning.batches import ControlBatches
from tilting.config.condition_train import TrainConfig
from tilting.config.finetune import FinetuneConfig
from tilting.models.labels import Augmented, LabelEmbedding
from tilting.training.batches import Batches, batch_identities
from tilting.training.processes import Engine

MANY = [f"a fox number {i}" for i in range(3000)]


class Counting:
    """Pocket, and the texts that its encoder saw, as token ids."""

    def __init__(self):
        self.model, self.all = tl.load("pocket"), []
        layer = next(part for key, part in self.model.text_encoder.named_modules() if key.endswith("token_embedding"))
        layer.register_forward_pre_hook(lambda _, given: self.all.extend(map(tuple, given[0].tolist())))
        self.model.forget()

    @property
    def seen(self) -> list[tuple[int, ...]]:
        """But for the word that a call is looked at with."""
        looked = self.ids(["a"])
        return [one for one in self.all if one not in looked]

    def ids(self, texts) -> set[tuple[int, ...]]:
        return set(map(tuple, self.model.tokenizer(list(texts), padding="max_length", truncation=True)["input_ids"]))


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


def predicted(made: Batches, step: int) -> torch.Tensor:
    """What the network says at the last time of a step's batch, of the same latents."""
    batch = made(step, {})
    x = torch.randn(len(batch.who), *made.model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return batch.base(x, batch.grid[1], batch.rows).eps


@pytest.mark.parametrize("kind", ["finetune", "control"])
def test_prompts_are_encoded_when_they_are_drawn_and_forgotten_within_bounds(counting, kind):
    made, memo = batches(counting, MANY, kind), counting.model.patched.cache
    assert set(counting.seen) <= counting.ids([""])
    predicted(made, 0)
    drawn = counting.ids({*(w.prompt for w in batch_identities(MANY, 0, 0, 4, 1)), ""})
    assert Counter(counting.seen) == dict.fromkeys(drawn, 1)
    memo.most = 3 * memo.held // 2
    for step in range(1, 4):
        predicted(made, step)
        assert memo.held <= memo.most
    assert len(counting.seen) >= 4 * 4 + 1 and 0 < made.text_bytes <= memo.most


def test_a_forgotten_prompt_comes_back_the_same_to_the_last_digit(counting):
    """So a run that is resumed, whose memory is empty, is the same run."""
    made = batches(counting, MANY[:12])
    wanted = [predicted(made, step) for step in range(2)]
    counting.model.patched.cache.most = 1
    counting.model.patched.cache.clear()
    assert all(torch.equal(predicted(batches(counting, MANY[:12]), step), wanted[step]) for step in (1, 0))
    assert len(counting.model.patched.cache) == 1


def test_a_prompt_counts_as_often_as_it_is_written(counting):
    prompts = ["a fox"] * 9 + ["a cat"]
    drawn = Counter(w.prompt for step in range(50) for w in batch_identities(prompts, 0, step, 10, 1))
    assert drawn == {"a fox": 450, "a cat": 50}  # without replacement, as far as they go
    made = batches(counting, prompts, **{"batch-size": 10})
    who = made(3, {}).who
    assert Counter(w.prompt for w in who) == {"a fox": 9, "a cat": 1} and len(set(who)) == 10
    predicted(made, 3)
    assert Counter(counting.seen) == dict.fromkeys(counting.ids(["a fox", "a cat", ""]), 1)
