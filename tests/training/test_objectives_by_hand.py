"""What a line of training does, by hand: one update, one loss, where a slip would still learn something."""

from __future__ import annotations

import pytest
import torch

import tilting as tl
from support.drift import Drift, make, moved
from support.drift import run as tune
from tilting.objectives import OBJECTIVES, ddpo, draft_k, refl
from tilting.objectives.rollout import mean_kl, rollout
from tilting.objectives.supervised import denoising_error, draw
from tilting.types import Transition


def test_refl_takes_any_of_its_last_steps_and_no_other(mixture):
    steps = {
        loss.numbers["from_step"]
        for k in range(60)
        for loss in refl(last=3)(make(mixture, moved(Drift()), images=2, steps=6, step=k))
    }
    assert steps == {3.0, 4.0, 5.0}


def test_steps_skipped_in_a_row_are_remembered_over_a_restart(mixture, tmp_path):
    """A run of broken steps is not begun anew by stopping: ten in a row end it, six before the restart and four after."""

    def broken(x0, rows):
        return x0.sum(1) * float("nan")

    tune(draft_k(1), mixture, 12, value=broken, folder=tmp_path, until=6)
    with pytest.raises(tl.TiltingError, match="10 steps in a row"):
        tune(draft_k(1), mixture, 12, value=broken, folder=tmp_path)


def test_a_policys_kl_is_the_paths(mixture):
    """Σ over steps of |mean - mean_base|² / (2 std²), summed over dimensions: what `rollout` adds up on the same path."""
    world = make(mixture, moved(Drift()), images=6, steps=5)
    kernel, base = Transition(torch.tensor([[3.0, 4.0]]), 0.5, torch.zeros(1)), torch.tensor([[0.0, 0.0]])
    assert mean_kl(kernel, base).tolist() == [25 / (2 * 0.25)]
    path = rollout(world, torch.ones(5, dtype=torch.bool), kl=True)
    policy = ddpo(advantage="plain", kl=0.3, minibatches=1, reduction="sum")
    losses = list(policy(world))
    assert sum(loss.numbers["kl_step"] for loss in losses) == pytest.approx(path.kl.mean().item())


def fits(objective, world):
    """Losses of an objective that fits samples, and of each of its times the error (b,) of every image."""
    clean, value = draw(world)
    return (
        list(objective(world)),
        value,
        [denoising_error(world.plain, clean, world.rows, world, k) for k in range(objective.timesteps)],
    )


def test_rwr_weighs_by_the_softmax_of_the_reward_over_beta(mixture):
    world = make(mixture, moved(Drift()), images=8, prompts=2)
    for beta in (0.1, 2.0):
        losses, value, errors = fits(OBJECTIVES["rwr"](beta=beta, timesteps=3), world)
        weight = (value / beta).exp() / (value / beta).exp().sum()
        found = sum(loss.value.item() for loss in losses)
        assert found == pytest.approx(sum((weight * e).sum().item() for e in errors) / 3)


def test_raft_fits_the_best_of_each_prompt(mixture):
    world = make(mixture, moved(Drift()), images=8, prompts=2)
    losses, value, errors = fits(OBJECTIVES["raft"](group_size=4, timesteps=3), world)
    best = [max((i for i in range(8) if i % 2 == p), key=lambda i: value[i].item()) for p in range(2)]
    assert sum(loss.value.item() for loss in losses) == pytest.approx(sum(e[best].mean().item() for e in errors) / 3)
