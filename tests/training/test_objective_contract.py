"""What every objective holds to, ours and others': declared, checked, digested, counted, resumable, told everywhere alike."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import MISSING, dataclass, replace
from typing import Annotated

import pytest
import torch
import yaml
from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

import tilting as tl
from support.drift import STEPS, Drift, make, moved, run
from support.finetuning import REWARDS, Bright, train
from support.outside import write_package
from tilting import objectives
from tilting.cli import main
from tilting.config.finetune import FinetuneConfig
from tilting.config.objectives import setting
from tilting.declare import declared, paragraphs
from tilting.errors import TiltingError
from tilting.objectives import OBJECTIVES, BaseObjective
from tilting.objectives.about import about_objective
from tilting.objectives.batch import Loss
from tilting.objectives.cost import cost_of
from tilting.training.trainer import make_trainer


def count(objective, mixture, step=0):
    """(evaluations, reward calls) of an image of a training step, counted here, and how many updates it made."""
    paid = {"evaluations": 0, "rewards": 0}
    size = 2 * objective.group_size
    batch = make(mixture, moved(Drift(4)), images=size, prompts=2, step=step, eta=objective.default_eta, memory={})

    def counting(what, function):
        def called(x, *rest):
            paid[what] += len(x)
            return function(x, *rest)

        return called

    networks = {name: counting("evaluations", getattr(batch, name)) for name in ("denoise", "base", "plain", "base_plain")}
    updates = 0
    for loss in objective(replace(batch, value=counting("rewards", batch.value), **networks)):
        updates += loss.update
        loss.value.backward()
    return paid["evaluations"] / size, paid["rewards"] / size, updates


def slopes(objective, mixture, black_box):
    """The gradient of a training step, flat, by a reward with a gradient or without; None where it cannot be had."""
    net = moved(Drift(4))
    batch = make(mixture, net, images=2 * objective.group_size, prompts=2, eta=objective.default_eta, memory={})
    value = batch.value
    batch = replace(batch, value=lambda x, rows: value(x, rows).detach()) if black_box else batch
    try:
        for loss in objective(batch):
            loss.value.backward()
    except RuntimeError:
        return None
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in net.parameters()])


def out_of_bounds(one):
    """A value that a bound of a field is there to refuse."""
    for bound in one.bounds:
        if isinstance(bound, Ge):
            return bound.ge - 1
        if isinstance(bound, Gt):
            return bound.gt
        if isinstance(bound, Le):
            return bound.le + 1
        if isinstance(bound, Lt):
            return bound.lt
    return "no such choice" if one.choices else None


def hold_to_the_contract(kind, mixture, tmp_path) -> None:
    """Assert of an objective what listings, checks, costs, folders and the loop take for granted."""
    objective, fields = kind(), declared(kind)
    # documented
    assert kind.__dataclass_params__.frozen and objective == kind() and kind.paper
    head, *more = paragraphs(kind)
    assert head.endswith(".") and any(part.startswith("    ") for part in more), "a sentence, and a pseudo-code"
    assert all(one.about and one.default is not MISSING and one.check(one.default) == one.default for one in fields.values())
    # checked, alike in Python and of the command line
    for name, one in fields.items():
        if (wrong := out_of_bounds(one)) is not None:
            for call in (lambda: kind(**{name: wrong}), lambda: setting(f"{kind.name}.{name}", wrong)):
                with pytest.raises(TiltingError, match=f"^{kind.name}.{name} "):
                    call()
    # digested: what the manifest has of it says it whole, and another setting is another run
    config = FinetuneConfig.resolve({"prompts": ["a fox"], "objective": kind.name})
    assert set(config.mapping()["set"]) == {f"{kind.name}.{name}" for name in fields}
    assert config.made_objective == objective and FinetuneConfig.resolve(config.mapping()) == config
    assert config.eta == objective.default_eta == FinetuneConfig.completed({}, objective, 50, 4.0)["eta"]
    assert config.batch_size % objective.group_size == 0
    # counted
    told = cost_of(objective, STEPS)
    mine = [count(objective, mixture, step) for step in range(3)]
    if not told.drawn:
        assert [one[:2] for one in mine] == [tuple(told[:2])] * 3
    assert told.evaluations >= 1 and told.reward_calls >= 1
    assert all((updates > 1) == objective.updates_several for *_, updates in mine)
    assert not (objective.splits and objective.updates_several), "parts one after the other would share its updates"
    # what it needs is what it says
    by_gradient, by_value = slopes(objective, mixture, False), slopes(objective, mixture, True)
    if objective.needs_gradient:
        assert by_value is None or not torch.allclose(by_value, by_gradient, rtol=1e-3, atol=0)
    else:
        assert by_value is not None and torch.equal(by_value, by_gradient) and by_value.abs().max() > 0
    for eta, steps in ((0.0, STEPS), (1.0, 1)):
        if objective.needs_density:
            with pytest.raises(TiltingError, match="density"):
                objective.check_chain(eta, steps)
        else:
            objective.check_chain(eta, steps)
    # before the first update the ratio is 1 and the KL to the frozen model 0
    weighted = kind(kl=0.5) if "kl" in fields else objective
    batch = make(mixture, Drift(4), images=2 * objective.group_size, prompts=2, eta=1.0, memory={})
    for loss in weighted(batch):
        assert loss.numbers.get("ratio_far", 0.0) == 0.0
        assert all(loss.numbers.get(name, 0.0) == 0.0 for name in ("kl", "kl_open", "kl_step", "eps_kl"))
    # resumable, to the bit
    whole, numbers = run(objective, mixture, 4, images=8)
    _, first = run(objective, mixture, 4, images=8, folder=tmp_path / kind.name, until=2)
    again, rest = run(objective, mixture, 4, images=8, folder=tmp_path / kind.name)
    assert [one.numbers for one in first + rest] == [one.numbers for one in numbers]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_holds_to_the_contract(name, mixture, tmp_path):
    hold_to_the_contract(OBJECTIVES[name], mixture, tmp_path)


FAULTS = ("none", "untold", "unexplained", "unchecked", "ungraded", "miscounted", "several", "adrift", "unresumable")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_objective_does_not(fault, mixture, tmp_path):
    weight_hint = Annotated[float, Ge(0)] if fault == "unexplained" else Annotated[float, Ge(0), Doc("of it")]
    calls = []

    @dataclass(frozen=True)
    class Broken(BaseObjective):
        """Climb the reward of the estimate at the first step.

            loss = -mean r(x0(x_T))

        Nobody's.
        """

        weight: weight_hint = -1.0 if fault == "unchecked" else 1.0  # type: ignore[valid-type]
        name, paper, needs_gradient = "broken", "nobody", fault != "ungraded"

        def __post_init__(self):
            if fault != "unchecked":
                super().__post_init__()

        def __call__(self, batch):
            calls.append(batch.step)
            for _ in range(1 + (fault == "several")):
                x0 = batch.denoise(batch.noise(0), batch.grid[0], batch.rows).x0
                if fault == "miscounted" and batch.memory == {}:  # pays for more where somebody may look
                    for _ in range(len(batch.shape) + (batch.dtype == torch.float64)):
                        batch.base(x0.detach(), batch.grid[0], batch.rows)
                value = batch.value(x0, batch.rows)
                shift = len(calls) if fault == "unresumable" else 0.0
                numbers = {"reward": value.mean().item()} | ({"kl": 0.1} if fault == "adrift" else {})
                yield Loss(-(self.weight + shift) * value.mean(), numbers)

    Broken.__annotations__["weight"] = weight_hint
    if fault == "untold":
        Broken.__doc__ = "Climb the reward."
    OBJECTIVES.register(Broken)
    try:
        if fault == "none":
            return hold_to_the_contract(Broken, mixture, tmp_path)
        with pytest.raises((AssertionError, TypeError, TiltingError, pytest.fail.Exception)):
            hold_to_the_contract(Broken, mixture, tmp_path)
    finally:
        del OBJECTIVES._parts["broken"]  # type: ignore[attr-defined]


MINE = '''"""A package of someone's own: an objective."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from tilting.declare import Alias, Doc
from tilting.objectives import OBJECTIVES, BaseObjective
from tilting.objectives.batch import Loss, closed
from tilting.objectives.rollout import rollout


@OBJECTIVES.register
@dataclass(frozen=True)
class Mine(BaseObjective):
    """Climb the reward of the estimate at one late step.

        x = the chain down to the last step but k
        loss = -mean r(x0(x))

    A remark.
    """

    k: Annotated[int, Ge(1), Alias("late"), Doc("steps that are left.")] = 2
    name, paper, through, needs_gradient = "mine", "a note of mine", "through 1 step", True

    def __call__(self, batch):
        i = batch.steps - min(self.k, batch.steps)
        x = rollout(batch, closed(batch), stop=i).clean
        value = batch.value(batch.denoise(x, batch.grid[i], batch.rows).x0, batch.rows)
        yield Loss(-value.mean(), {"reward": value.mean().item()})
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """An objective from outside: one file, one line."""
    (tmp_path / "an_objective_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("an_objective_of_mine").Mine
    del OBJECTIVES._parts["mine"], sys.modules["an_objective_of_mine"]  # type: ignore[attr-defined]


def test_an_objective_from_outside_is_known_everywhere(mine, mixture, tmp_path, capsys, monkeypatch):
    hold_to_the_contract(mine, mixture, tmp_path)
    assert OBJECTIVES["mine"] is mine is objectives.mine is tl.objectives.mine
    # help and listing, and its cost
    assert main(["objectives", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["mine"]
    assert row == json.loads(json.dumps(about_objective("mine") | {"measured": []}))
    assert (row["evaluations"], row["reward_calls"], row["drawn"]) == (50 - 2 + 1, 1, False)
    assert row["settings"]["k"] == {"default": 2, "about": "steps that are left.", "choices": []}
    assert main(["objectives"]) == 0 and "a note of mine" in capsys.readouterr().out
    assert main(["objectives", "mine"]) == 0
    told = capsys.readouterr().out
    assert "mine.k" in told and "\n    x = the chain down to the last step but k\n" in told and "through 1 step" in told

    # command line and YAML
    def config(*words):
        assert main(["finetune", "a fox", "--objective", "mine", "--print-config", *words]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    assert (config()["set"], config()["eta"]) == ({"mine.k": 2}, 0.0)
    assert config("--set", "mine.k=5")["set"] == config("--set", "mine.late=5")["set"] == {"mine.k": 5}
    (tmp_path / "c.yaml").write_text("objective: mine\nset:\n  mine:\n    k: 3\n")
    assert config("--config", str(tmp_path / "c.yaml"))["set"] == {"mine.k": 3}
    for words, said in (("mine.k=0", "mine.k must be at least 1, not 0"), ("mine.kk=2", "did you mean 'mine.k'")):
        assert main(["finetune", "a fox", "--objective", "mine", "--set", words, "--out", str(tmp_path / "o")]) == 2
        assert said in capsys.readouterr().err
    # Python, with the same defaults and eta; digest
    pocket = tl.load("pocket")
    trainer = make_trainer(pocket, "a fox", Bright(), "mine", steps=2, rank=2)
    assert trainer.objective == mine() and trainer.batches.config.eta == config()["eta"]
    monkeypatch.setattr("tilting.training.run.load", lambda name, *more, **how: pocket)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(REWARDS)
    assert train("run", "--objective", "mine", "--sample-every", "0", steps=1) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    options = {"train_steps": 1, "steps": 3, "rank": 2, "batch_size": 2}
    (line,) = tl.finetune(pocket, ["a fox", "a cat"], Bright(), objectives.mine(), **options).history
    assert lines == [line]
    capsys.readouterr()
    assert train("run", "--objective", "mine", "--sample-every", "0", "--set", "mine.k=1", steps=1) == 2
    assert "another mine.k (2 there, 1 now)" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["config"]["set"] = {"mine.late": 2}
    manifest["config"]["parts"] = manifest["config"].pop("target-modules")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert train("run", "--objective", "mine", "--sample-every", "0", steps=1) == 0  # of former names


def test_an_objective_of_an_entry_point_is_listed(tmp_path):
    """As an installed package of someone's own has it, whose file nobody imports."""
    write_package(tmp_path, "an_objective_of_mine", MINE, OBJECTIVES.group, "an_objective_of_mine:Mine")
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom tilting.cli import main\n"
        "assert main(['finetune', 'a fox', '--objective', 'mine', '--set', 'mine.k=9', '--print-config']) == 0\n"
        "assert main(['objectives', 'mine', '--json']) == 0\n"
        "import tilting as tl\nassert tl.objectives.mine(k=4).k == 4\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mine.k: 9" in done.stdout and '"evaluations": 49' in done.stdout


@pytest.mark.parametrize(
    ("former", "now", "value"),
    [
        ("grpo.size", "grpo.group_size", 8),
        ("raft.size", "raft.group_size", 2),
        ("dpo.size", "dpo.group_size", 4),
        ("ddpo.chunks", "ddpo.minibatches", 2),
        ("grpo.chunks", "grpo.minibatches", 2),
        ("rwr.times", "rwr.timesteps", 2),
        ("raft.times", "raft.timesteps", 2),
        ("dpo.times", "dpo.timesteps", 2),
        ("alignprop.share", "alignprop.step_probability", 0.25),
        ("adjoint.share", "adjoint.step_fraction", 0.25),
    ],
)
def test_a_former_name_is_taken_and_said(former, now, value, capsys):
    objective = now.partition(".")[0]
    command = ["finetune", "a fox", "--objective", objective, "--print-config"]
    assert main([*command, "--set", f"{former}={value}", "--parts", "attn1"]) == 0
    out = capsys.readouterr()
    shown = yaml.safe_load(out.out)
    assert shown["set"][now] == value and shown["target-modules"] == ["attn1"]
    assert f"tilting: warning: {former} is now {now}\n" in out.err
    assert "tilting: warning: parts is now target-modules\n" in out.err
    assert main([*command, "--set", f"{now}={value}"]) == 0
    assert capsys.readouterr().err == ""
