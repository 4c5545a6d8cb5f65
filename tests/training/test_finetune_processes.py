"""Two processes at the same global batch are one process: every objective, over gloo, on the toy drift of support.drift, and
the command itself on pocket.

Tolerance: losses and rewards of three steps within 1e-8 relative in float64 (sums are taken in another order); the trained
tensors of the two processes agree bit for bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from support.drift import AIM, Drift, make
from tilting.cli import main
from tilting.objectives import OBJECTIVES
from tilting.oracle.mixture import Mixture
from tilting.rng import Identity
from tilting.training.folder import read_lines
from tilting.training.loop import Optimiser, TrainState, train
from tilting.training.processes import Engine

BATCH, STEPS = 8, 3
PLANE = (
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([[-1.5, 0.5], [1.5, 1.0], [0.3, -1.8]], dtype=torch.float64),
    torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64),
)
SETTINGS = {
    "ddpo": {"clip": 0.2, "minibatches": 3, "reduction": "sum", "kl": 0.1},
    "grpo": {"clip": 0.2, "minibatches": 2, "reduction": "sum"},
    "rwr": {"beta": 0.3},
    "dpo": {"beta": 20.0, "group_size": 4},
    "draft": {"kl": 0.1, "dropout": 0.5},
    "adjoint": {"step_fraction": 0.5},
}


def fit(name: str, rank: int, count: int, reduce=None, gather=None, broken: int | None = None):
    """Lines and parameters of a run, of which this is one process."""
    torch.manual_seed(rank)  # what is not keyed would differ
    objective = OBJECTIVES[name](**SETTINGS.get(name, {}))
    net, optimiser = Drift(8), Optimiser(rate=5e-3)
    parameters = dict(net.named_parameters())
    training = TrainState(parameters, optimiser.build(list(parameters.values())))
    share = BATCH // count

    def world_of(step, memory):
        def value(x0, rows):
            return x0 @ AIM * (float("nan") if broken == step and rank == count - 1 else 1.0)

        world = make(Mixture(*PLANE), net, images=BATCH, steps=4, step=step, memory=memory, value=value)
        everyone = [Identity(0, f"prompt {i // 4}", step * BATCH + i) for i in range(BATCH)]
        mine = everyone[rank * share : (rank + 1) * share]
        return replace(world, who=mine, everyone=everyone, first=rank * share, gather=gather)

    lines = []
    for report in train(training, objective, world_of, optimiser, STEPS, reduce):
        lines.append((report.skipped is None, report.numbers))
    return lines, torch.cat([p.detach().flatten() for p in net.parameters()])


def worker(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)

    def reduce(value):
        value = value.detach().clone()
        dist.all_reduce(value)
        return value / count

    def gather(value):
        parts = [torch.empty_like(value) for _ in range(count)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    found = {}
    engine = Engine(rank, count, reduce=reduce, gather=gather)
    for name in [*OBJECTIVES, "broken"]:
        lines, weights = fit("ddpo" if name == "broken" else name, rank, count, reduce, gather, 1 if name == "broken" else None)
        numbers = [engine.mean({k: v for k, v in n.items() if k in ("loss", "reward")}) if ok else {} for ok, n in lines]
        found[name] = ([ok for ok, _ in lines], numbers, weights)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()  # neither leaves while the other still talks to it
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group, and end an orderly interpreter with SIGABRT


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    torch.multiprocessing.spawn(worker, (2, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_are_one(pair, name):
    lines, weights = fit(name, 0, 1)
    alone = [{k: v for k, v in numbers.items() if k in ("loss", "reward")} for _, numbers in lines]
    for (ok, numbers, mine), (_, others, theirs) in [(pair[0][name], pair[1][name])]:
        assert ok == [True] * STEPS
        assert numbers == others
        assert torch.equal(mine, theirs)
        for a, b in zip(alone, numbers, strict=True):
            assert a["reward"] == pytest.approx(b["reward"], rel=1e-8)
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-8, abs=1e-10)
        assert not torch.equal(mine, torch.cat([p.detach().flatten() for p in Drift(8).parameters()]))
        assert torch.allclose(mine, weights, rtol=1e-6, atol=1e-8)


def test_a_reward_that_breaks_on_one_process_skips_the_step_on_both_and_leaves_no_trace(pair):
    (ok, _, mine), (also, _, theirs) = pair[0]["broken"], pair[1]["broken"]
    assert ok == also == [True, False, True]
    assert torch.equal(mine, theirs)
    assert mine.isfinite().all()


@pytest.mark.slow
def test_the_command_under_accelerate_launch_is_the_command_alone(tmp_path, monkeypatch):
    """DDPO on pocket: statistics of all prompts, gradients and the judge's look are shared; lines within 1e-4 in float32."""
    words = [
        "finetune",
        "a fox",
        "a cat",
        "--objective",
        "ddpo",
        "--reward",
        "r.py:bright",
        "--steps",
        "3",
        "--rank",
        "2",
        "--batch-size",
        "4",
        "--train-steps",
        "2",
        "--sample-every",
        "2",
        "--sample-images",
        "1",
        "--quiet",
        "--out",
    ]
    (tmp_path / "r.py").write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3))\n")  # smooth, unlike bytes
    launch = [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--main_process_port",
        "0",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "-m",
        "tilting",
    ]
    command = [sys.executable, "-m", *launch, *words, "two"]  # without a GPU the same launcher starts processes of CPUs
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    assert main([*words, "one"]) == 0
    one, two = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-7)
    assert (tmp_path / "two" / "manifest.json").read_text().count('"processes": 2') == 1
