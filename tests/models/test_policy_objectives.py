"""Policy objectives on models of every kind of output, with rewards of every kind: every pair of the three, a step of each."""

from __future__ import annotations

import itertools

import pytest
import torch

import tilting as tl
from support.finetuning import Bright
from support.today import TOLD, write
from tilting import rewards
from tilting.objectives import OBJECTIVES

POLICIES = [name for name, kind in OBJECTIVES.items() if kind.group_size > 1 and "rewards" in kind.__dataclass_fields__]
POLICIES += ["ddpo", "dpok", "pref-grpo"]
MODELS = ("pocket", "sd3", "flux")  # v, flow, and flow that is told its guidance


class Judge:
    """Black-box, of pictures one by one and in pairs."""

    name, differentiable = "judge", False

    def __call__(self, images, prompts):
        return -images[:, 0].mean((1, 2))

    def prefers(self, a, b, prompts):
        return (a.mean((1, 2, 3)) > b.mean((1, 2, 3))).float()


def two():
    """Two rewards of different units, one of them constant."""

    class Constant(Judge):
        name = "constant"

        def __call__(self, images, prompts):
            return torch.full((len(images),), 1000.0)

    return rewards.combine([(Bright(), 2.0), Constant()])


REWARDS = {"bright": Bright, "judge": Judge, "two": two}
COVER = [
    (policy, model, list(REWARDS)[(i + k) % len(REWARDS)])
    for i, policy in enumerate(POLICIES)
    for k, model in enumerate(MODELS)
]


def test_the_set_covers_every_pair():
    pairs = itertools.combinations(range(3), 2)
    everything = (POLICIES, MODELS, list(REWARDS))
    for a, b in pairs:
        assert {(row[a], row[b]) for row in COVER} == set(itertools.product(everything[a], everything[b]))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    held = {}

    def get(name):
        if name not in held:
            held[name] = (
                tl.load("pocket")
                if name == "pocket"
                else tl.load(write(name, tmp_path_factory.mktemp("tiny") / name), **TOLD.get(name, {}))
            )
        return held[name]

    return get


SLOW = [pytest.param(*row, marks=pytest.mark.slow) if row[1] != "sd3" else row for row in COVER]


@pytest.mark.parametrize(("policy", "model", "reward"), SLOW)
def test_a_policy_objective_trains_a_model_on_a_reward(models, policy, model, reward):
    kind = OBJECTIVES[policy]
    made = kind(rewards="gdpo") if reward == "two" and "rewards" in kind.__dataclass_fields__ else kind()
    batch = 2 * made.group_size if made.group_size > 1 else 4
    options = {"train_steps": 1, "steps": 2, "batch_size": batch, "rank": 1, "target_modules": ("attn1",)}
    (row,) = tl.finetune(models(model), ["a fox", "a cat"], REWARDS[reward](), made, **options).history
    assert row["gradient_norm"] > 0 and row["skipped"] == 0
    assert row.get("ratio_far", 0.0) == 0.0
    assert policy == "crd" or row.get("from_base", 0.0) == 0.0  # crd's base is guided, what it trains is not
