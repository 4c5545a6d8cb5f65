"""The field's objectives in runs: averages that they learn from, teachers, several rewards, laws of a step, steer then bake."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

import tilting as tl
from support import tiny_pipelines
from support.drift import Drift, make, run
from support.finetuning import REWARDS, Bright, train
from tilting import rewards
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.models.lora import TRAINED, active, lora_state
from tilting.objectives import OBJECTIVES
from tilting.training.average import Average
from tilting.training.loop import Optimiser, TrainState
from tilting.training.loop import train as loop
from tilting.training.trainer import make_trainer

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = {"train_steps": 2, "steps": 2, "rank": 2, "lr": 1e-2}


@pytest.fixture
def pocket():
    return tl.load("pocket")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(REWARDS)
    return tmp_path


def test_averages_follow_at_the_objectives_own_pace_and_are_what_it_sees(mixture):
    """nft's old policy after k steps, by hand; the next step draws by it."""
    nft = OBJECTIVES["nft"](ramp=0.2, most=0.5, distance=0.0)
    net, optimiser = Drift(4), Optimiser(rate=2e-2, weight_decay=0.0)
    parameters = dict(net.named_parameters())
    averages = {name: Average(parameters, decay) for name, decay in nft.averages().items()}
    state, drawn, weights = TrainState(parameters, optimiser.build(parameters), averages=averages), [], []

    def world_of(step, memory):
        weights.append({name: p.detach().clone() for name, p in parameters.items()})
        return make(mixture, net, images=8, step=step, memory=memory, prompts=2)

    drawn = [info.numbers["reward"] for info in loop(state, nft, world_of, optimiser, 4)]
    old = weights[0]
    other = Drift(4)
    for step, now in enumerate([*weights[1:], {n: p.detach() for n, p in parameters.items()}]):
        other.load_state_dict(old)
        alone = make(mixture, other, images=8, step=step, prompts=2)
        assert drawn[step] == pytest.approx(next(iter(nft(alone))).numbers["reward"], rel=1e-9)
        d = min(0.2 * (step + 1), 0.5)
        old = {name: d * old[name] + (1 - d) * now[name] for name in now}
    for name, value in state.averages["old"].values.items():
        assert torch.allclose(value, old[name], rtol=1e-12)


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if kind().averages()])
def test_a_run_with_averages_goes_on_as_it_was(mixture, tmp_path, name):
    objective = OBJECTIVES[name]()
    whole, numbers = run(objective, mixture, 4, images=8)
    _, first = run(objective, mixture, 4, images=8, folder=tmp_path, until=2)
    again, rest = run(objective, mixture, 4, images=8, folder=tmp_path)
    assert [one.numbers for one in first + rest] == [one.numbers for one in numbers]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_lora_that_is_distilled_is_on_in_the_teacher_alone(pocket, tmp_path):
    """Two LoRAs and their scales; the teacher is their sum, the student begins at the base model and comes nearer."""
    for k in range(2):
        tl.finetune(pocket, "a fox", Bright(), "draft-k", seed=k, **SMALL).save(tmp_path / f"t{k}")
    told = (f"{tmp_path / 't0'}=0.5", str(tmp_path / "t1"))
    make_trainer(pocket, "a fox", Bright(), "opd", teacher=told, **SMALL)  # which the next one takes the place of
    trainer = make_trainer(pocket, "a fox", Bright(), "opd", teacher=told, batch_size=2, eta=1.0, **SMALL | {"train_steps": 6})
    batch = trainer.batches(0, {})
    x, t = batch.noise(0), batch.grid[0]
    with torch.no_grad():
        base, student, teacher = (n(x, t, batch.rows).x0 for n in (batch.base, batch.denoise, batch.teacher))
    assert torch.equal(base, student) and not torch.allclose(base, teacher)
    stacked = tl.load("pocket")
    from tilting.models.attach import attach_all
    from tilting.models.lora_file import parse_lora

    stacked = attach_all(stacked, [parse_lora(one) for one in told], 2)
    with torch.no_grad():
        wanted = stacked.denoiser(["a fox"], trainer.batches.config.cfg)(x, t, torch.zeros(len(x), dtype=torch.long)).x0
    assert torch.allclose(teacher, wanted, atol=1e-5)
    assert sum(name.startswith("teacher") for name in pocket.backbone.peft_config) == 2
    learnt = make_trainer(pocket, "a fox", Bright(), "opd", teacher=told, learn=("lora", "guidance"), batch_size=2, **SMALL)
    with torch.no_grad():
        learnt.inputs.guidance.weight += 1.0  # is the student's own
        batch = learnt.batches(0, {})
        student, theirs = (network(x, t, batch.rows).x0 for network in (batch.denoise, batch.teacher))
    assert torch.equal(theirs, teacher) and not torch.allclose(student, base, atol=1e-3)
    trainer = make_trainer(pocket, "a fox", Bright(), "opd", teacher=told, batch_size=2, eta=1.0, **SMALL | {"train_steps": 6})
    far = [row.numbers["from_teacher"] for row in trainer.steps(6)]
    assert far[-1] < 0.9 * far[0]
    assert list(active(pocket.backbone)) == [TRAINED] and set(lora_state(pocket.backbone)) == set(trainer.lora())


@pytest.mark.parametrize("method", ["bon", pytest.param("codex", marks=pytest.mark.slow)])
def test_steer_then_bake_is_one_command(here, method):
    """A method's samples, with its gradient or none, and what is written draws at base cost."""
    words = ("--set", f"opd.method={method}", "--set", "opd.epochs=2", "--set", "opd.timesteps=1", "--objective", "opd")
    assert train("run", *words, "--sample-every", "0", steps=1, batch=1) == 0
    rows = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["error"] > 0 and row["gradient_norm"] > 0 for row in rows)
    assert main(["generate", "a fox", "--lora", "run", "--steps", "2", "--out", "drawn", "--quiet"]) == 0
    assert json.loads((here / "drawn" / "manifest.json").read_text())["summary"]["evaluations"] == 2


def test_what_cannot_be_baked_is_refused(here, capsys):
    assert train("none", "--set", "opd.method=codx", "--objective", "opd") == 2
    assert "did you mean 'codex'" in capsys.readouterr().err
    assert train("dark", "--set", "opd.method=codex", "--objective", "opd", reward="r.py:raises") == 2
    assert "black-box" in capsys.readouterr().err


def test_a_teacher_is_kept_and_another_is_another_run(here, pocket, capsys):
    for k in range(2):
        tl.finetune(pocket, "a fox", Bright(), "draft-k", seed=k, **SMALL).save(here / f"t{k}")
    words = ("--objective", "opd", "--teacher", "t0")
    assert train("run", *words, steps=1) == 0
    manifest = json.loads((here / "run" / "manifest.json").read_text())
    assert manifest["config"]["teacher"] == ["t0"] and len(manifest["config"]["teacher-sha256"]) == 1
    assert train("run", "--objective", "opd", "--teacher", "t1", steps=1) == 2
    assert "teacher" in capsys.readouterr().err
    (here / "t1" / "pytorch_lora_weights.safetensors").rename(here / "t0" / "pytorch_lora_weights.safetensors")
    assert train("run", *words, steps=1) == 2
    assert "distilled a LoRA of other weights" in capsys.readouterr().err
    assert train("none", "--objective", "opd", "--teacher", "nowhere") == 2
    assert "there is no LoRA at 'nowhere'" in capsys.readouterr().err
    assert main(["finetune", "a fox", "--objective", "nft", "--teacher", "t0", "--print-config"]) == 0


def test_several_rewards_by_gdpo_in_a_run(pocket):
    """Scored once each, in units of any size; a failing one skips the step."""
    calls = []

    class Other:
        differentiable = False

        def __init__(self, unit):
            self.unit, self.name = unit, f"other{unit}"

        def __call__(self, images, prompts):
            calls.append(len(images))
            return self.unit * images[:, 0].mean((1, 2))

    histories = []
    for unit in (1.0, 1000.0):
        reward = rewards.combine([Bright(), (Other(unit), 0.5)])
        options = {"batch_size": 4, "cfg": 1.0, **SMALL}
        history = tl.finetune(pocket, "a fox", reward, OBJECTIVES["grpo"](rewards="gdpo"), **options).history
        histories.append([row["gradient_norm"] for row in history])
        assert all(row["reward_calls"] == 4 * (k + 1) for k, row in enumerate(history))
    assert calls == [4] * 4 and histories[0] == pytest.approx(histories[1], rel=1e-3)
    trainer = make_trainer(
        pocket, "a fox", rewards.combine([Bright(), Other(float("nan"))]), OBJECTIVES["nft"](rewards="gdpo"), **SMALL
    )
    assert next(trainer.steps(1)).skipped is not None
    with pytest.raises(TiltingError, match="reward-dropout is of the sum"):
        make_trainer(pocket, "a fox", "clip", OBJECTIVES["grpo"](rewards="gdpo"), reward_dropout=0.5, **SMALL)


def test_a_judge_of_pairs_is_asked_by_pref_grpo(pocket):
    class Pairs(Bright):
        name, differentiable, asked = "pairs", False, []

        def prefers(self, a, b, prompts):
            self.asked.append((len(a), tuple(a.shape[1:]), set(prompts)))
            return (a.mean((1, 2, 3)) > b.mean((1, 2, 3))).float()

    reward = rewards.combine([(Pairs(), 2.0)])
    row = next(make_trainer(pocket, "a fox", reward, "pref-grpo", batch_size=4, **SMALL).steps(1)).numbers
    assert Pairs.asked == [(12, tuple(pocket.image_shape), {"a fox"})] and row["gradient_norm"] > 0
    assert row["reward_calls"] == 4 + 12
    term = {"diversity": "euclid=0.5"}  # one reward, but not all that is asked for
    row = next(make_trainer(pocket, "a fox", reward, "pref-grpo", batch_size=4, **SMALL, **term).steps(1)).numbers
    assert len(Pairs.asked) == 1 and row["reward_calls"] == 4 and row["gradient_norm"] > 0


def test_pref_grpo_hears_a_diversity_beside_a_judge_of_pairs(pocket):
    """A judge that says tie of every pair gives no advantage; a diversity beside it does."""

    class Ties(Bright):
        name, differentiable = "ties", False

        def __call__(self, images, prompts):
            return torch.full((len(images),), 0.5)

        def prefers(self, a, b, prompts):
            return torch.full((len(a),), 0.5)

    alone, beside = (
        next(make_trainer(pocket, "a fox", Ties(), "pref-grpo", batch_size=4, **SMALL, **more).steps(1)).numbers
        for more in ({}, {"diversity": "euclid=1"})
    )
    assert alone["gradient_norm"] == 0 < beside["gradient_norm"]


@pytest.mark.parametrize("sde", ["cps", "euler"])
def test_the_law_of_a_step_is_an_option_of_both_commands(here, sde, capsys):
    assert main(["generate", "a fox", "--sde", sde, "--steps", "3", "--out", "own", "--quiet"]) == 0
    assert main(["generate", "a fox", "--steps", "3", "--out", "plain", "--quiet"]) == 0
    pictures = [next((here / out).rglob("*.png")).read_bytes() for out in ("own", "plain")]
    assert pictures[0] != pictures[1]
    assert main(["generate", "a fox", "--steps", "3", "--out", "own", "--quiet"]) == 2
    assert "another sde" in capsys.readouterr().err
    assert train("tuned", "--objective", "grpo", "--sde", sde, "--set", "grpo.group_size=2", steps=1) == 0
    row = json.loads((here / "tuned" / "metrics.jsonl").read_text())
    assert row["ratio_far"] == 0 and row["gradient_norm"] > 0
    assert main(["finetune", "a fox", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["sde"] == "posterior"
    assert main(["generate", "a fox", "--sde", "csp"]) == 2
    assert "cps" in capsys.readouterr().err


def test_srpo_in_a_run_words_the_prompts(pocket):
    seen = []

    class Worded(Bright):
        def __call__(self, images, prompts):
            seen.append(set(prompts))
            return images.mean((1, 2, 3)) * torch.tensor([float(len(p)) for p in prompts])

    srpo = OBJECTIVES["srpo"](positive="sharp, ", negative="dull, ")
    row = next(make_trainer(pocket, "a fox", Worded(), srpo, batch_size=2, **SMALL).steps(1)).numbers
    assert seen == [{"sharp, a fox"}, {"dull, a fox"}] and row["gradient_norm"] > 0
    with pytest.raises(TiltingError, match="black-box"):
        make_trainer(pocket, "a fox", lambda images, prompts: [float(x.mean()) for x in images.numpy()], srpo, **SMALL)


@pytest.mark.parametrize("family", ["sd15", "flux", "flux_true", "z_image"])
def test_what_fits_samples_fits_the_branch_that_draws(family):
    """Without CFG is the guided prediction less (w - 1) corrections: of a distilled model, whose scale is an input of its
    network, the model that draws."""
    pipe, told = getattr(tiny_pipelines, family)()
    scale = "true_cfg_scale" if "true_cfg_scale" in told else "guidance_scale"
    cfg, negative = told.pop(scale), told.pop("negative_prompt", "")
    options = {"steps": 2, "rank": 1, "batch_size": 2, "cfg": cfg, "negative_prompt": negative}
    trainer = make_trainer(tl.load(pipe, **told), ["a fox", "an owl"], Bright(), "dpo", **options)
    batch = trainer.batches(0, {})
    x, t = batch.noise(0), batch.grid[1]
    with torch.no_grad():
        guided, plain, base = (f(x, t, batch.rows) for f in (batch.denoise, batch.plain, batch.base_plain))
    assert torch.equal(plain.eps, base.eps)
    assert not plain.correction.any()
    assert guided.correction.any() == (family != "flux")
    # z-image adds w corrections to the conditional branch, so that 0 is none
    over = cfg if family == "z_image" else cfg - 1
    torch.testing.assert_close(plain.eps, guided.eps - over * guided.correction, atol=1e-5, rtol=1e-4)
