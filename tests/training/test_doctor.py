"""`tilting doctor`: what is right passes, and each fault it is there for is found and named."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch

import tilting as tl
from tilting.cli import main
from tilting.config.finetune import resolve_finetune
from tilting.objectives.rollout import rollout
from tilting.training import doctor as module
from tilting.training.doctor import doctor
from tilting.training.run import Parts
from tilting.training.trainer import make_trainer

OPTIONS = {"prompts": ["a fox", "a cat"], "steps": 3, "rank": 2, "batch-size": 2}


@pytest.fixture(scope="module")
def pocket():
    return tl.load("pocket")


class Reward:
    """A smooth reward of a picture, and wrong ways to write it."""

    name, differentiable = "smooth", True

    def __init__(self, fault: str = ""):
        self.fault = fault

    def __call__(self, images, prompts):
        half = images[:, :, :, images.shape[3] // 2 :]
        other = images[:, :, :, : images.shape[3] // 2]
        if self.fault == "half":  # a part of the gradient is lost
            other = other.detach()
        value = ((half - 0.3) ** 2).mean((1, 2, 3)) + ((other - 0.6) ** 2).mean((1, 2, 3))
        return value.detach() if self.fault == "none" else value


def examine(pocket, fault="", full=False, **options):
    config = resolve_finetune({**OPTIONS, **options})
    return doctor(config, full, lambda config: Parts(pocket, Reward(fault), None, None))


def failing(found):
    return [name for name, check in found["checks"].items() if not check["ok"]]


@pytest.mark.slow
def test_a_sound_run_passes_and_its_arithmetic_is_right(pocket):
    found = examine(pocket, full=True, **{"accumulate": 2, "batch-size": 4, "objective": "draft"})
    assert failing(found) == []
    assert set(found["checks"]) == {"reward gradient", "ratio", "kl", "precision"}
    assert found["checks"]["reward gradient"]["error"] < 0.01
    batch, memory = found["batch"], found["memory"]
    assert (batch["images"], batch["at_once"], batch["images_in_all"]) == (4, 2, 800)
    assert found["step"]["evaluations"] == 4 * 6  # three steps, each made again on the way back
    weights = sum(p.numel() for m in pocket.networks() for n, p in m.named_parameters() if ".lora_" not in n) * 4
    lora = sum(p.numel() for m in pocket.networks() for n, p in m.named_parameters() if ".lora_" in n) * 4
    assert memory["model"] == weights
    assert memory["lora_and_optimiser"] == 4 * lora
    assert memory["peak"] == sum(v for k, v in memory.items() if k != "peak")


@pytest.mark.parametrize(("objective", "more"), [("draft", 0), ("ddpo", 0), ("dpok", 2), ("adjoint", 6)])
def test_the_latents_of_a_path_are_counted_once(pocket, objective, more):
    """Of three steps: its states, in as many storages; two means of the frozen model of DPOK, adjoints and means of all."""
    config = resolve_finetune({**OPTIONS, "objective": objective})
    run = make_trainer(pocket, ["a fox"], Reward(), steps=3, batch_size=1, rank=2)
    with torch.no_grad():
        path = rollout(run.batches(0, {}), torch.zeros(3, dtype=torch.bool))
    held = {x.untyped_storage().data_ptr() for point in path.points for x in (point.x, point.drawn)}
    assert config.made_objective.latents_kept(3) == len(held) + more == 4 + more


@pytest.mark.parametrize(("fault", "said"), [("half", "finite differences"), ("none", "no gradient")])
def test_a_wrong_gradient_is_found(pocket, fault, said):
    found = examine(pocket, fault)
    assert failing(found) == ["reward gradient"]
    assert said in found["checks"]["reward gradient"]["line"]
    assert failing(examine(pocket, fault, objective="ddpo")) == []  # which asks for none


def test_a_plain_function_is_examined_as_a_reward(pocket):
    def bright(images, prompts):
        return images.mean((1, 2, 3))

    config = resolve_finetune({**OPTIONS, "objective": "ddpo"})
    assert failing(doctor(config, parts=lambda config: Parts(pocket, bright, None, None))) == []


def test_another_precision_in_the_rollout_is_found(pocket, monkeypatch):
    import tilting.training.processes as engine

    def uneven(accelerator, device):
        def context():
            return nullcontext() if torch.is_grad_enabled() else torch.autocast("cpu", torch.bfloat16)

        return engine.Engine(context=context)

    monkeypatch.setattr(engine, "over", uneven)
    assert "precision" in failing(examine(pocket))


def test_a_base_that_is_another_network_is_found(pocket, monkeypatch):
    import tilting.training.trainer as home

    attach = home.attach

    def shaken(*arguments, **options):
        found = attach(*arguments, **options)
        for name, p in found.items():
            if "lora_B" in name:
                p.data += 0.02
        return found

    monkeypatch.setattr(home, "attach", shaken)
    assert failing(examine(pocket)) == ["kl"]


def test_the_command_prints_its_config_and_promises_no_folder(capsys, monkeypatch):
    monkeypatch.setattr(module, "doctor", None)
    assert main(["doctor", "a fox", "--steps", "3", "--out", "x", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert main(["finetune", "a fox", "--steps", "3", "--out", "x", "--print-config"]) == 0
    assert printed == capsys.readouterr().out and "steps: 3" in printed and "out: x" in printed
    assert main(["doctor", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("--out ") == 1 and "doctor writes nothing" in shown and "Folder to write" not in shown


def test_full_may_stand_in_a_config(capsys, tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text("prompts: [a fox]\nsteps: 3\nfull: true\n")
    asked = []
    monkeypatch.setattr(module, "doctor", lambda config, full: asked.append(full) or {"checks": {}})
    monkeypatch.setattr(module, "lines", lambda found, config: [])
    assert main(["doctor", "--config", str(tmp_path / "run.yaml")]) == 0
    assert main(["doctor", "a fox", "--full"]) == main(["doctor", "a fox"]) == 0
    assert asked == [True, True, False]
    (tmp_path / "run.yaml").write_text("full: 3\n")
    assert main(["doctor", "a fox", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "full must be true or false" in capsys.readouterr().err


def test_the_command_exits_by_its_checks(pocket, monkeypatch, capsys):
    for fault, code in (("", 0), ("none", 2)):
        monkeypatch.setattr(
            module,
            "doctor",
            lambda config, full, f=fault: doctor(config, full, lambda config: Parts(pocket, Reward(f), None, None)),
        )
        words = ["doctor", "a fox", "--steps", "3", "--rank", "2", "--json"]
        assert main(words) == code
        out, err = capsys.readouterr()
        assert json.loads(out)["checks"]["reward gradient"]["ok"] is (code == 0)
        assert ("a check failed, reward gradient" in err) is (code == 2)
        assert err.count("\n") == (code == 2)
