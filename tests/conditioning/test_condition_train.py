"""`condition train`: nothing learnt is nothing changed, the gradient by hand, log p on unseen noise, resume, refusals.

Models are a few thousand random weights (`small`), but for what must hold of pocket bit for bit.
"""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tilting as tl
from support.commands import over
from support.loras import lora_off
from support.processes import launched
from support.small import bright_fit, random_control
from tilting import rng
from tilting.cli import main
from tilting.conditioning.classifiers import Obedience
from tilting.conditioning.objective import draw_labels
from tilting.conditioning.readings import read_images
from tilting.conditioning.train_run import describe
from tilting.conditioning.trainer import follow, make_control_trainer
from tilting.config.condition_train import resolve_train
from tilting.features.fitted import save_classifier
from tilting.generation.generate import Drawn, draw, plan
from tilting.models.control_spec import read_control
from tilting.rewards.elsewhere import Elsewhere
from tilting.training.batches import batch_identities
from tilting.training.folder import read_lines
from tilting.types import TiltingError

pytestmark = pytest.mark.usefixtures("undrawn")

PROMPTS = ["a fox", "a cat"]
FUNCTION = """
import torch

def dark(images, prompts):
    p = torch.sigmoid(60 * (0.535 - images.mean((1, 2, 3)))).clamp(1e-6, 1 - 1e-6)
    return torch.stack([1 - p, p], 1).log()
dark.classes, dark.differentiable = ("no", "yes"), False

def unnamed(images, prompts):
    return images.mean((1, 2, 3))

def wrong(images, prompts):
    return torch.zeros(len(images), 2)
wrong.classes = ("no", "yes")
"""


@pytest.fixture(scope="module")
def fitted(small):
    return bright_fit(small).classifier


@pytest.fixture
def here(tmp_path, monkeypatch, small, folder, fitted):
    """A folder with a classifier and functions; the model is loaded once."""
    save_classifier(fitted, tmp_path / "FIT")
    (tmp_path / "f.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tilting.conditioning.train_run.load", lambda name, *more, **how: small)
    return tmp_path


def words(folder, out, *more, classifier="FIT", steps=3):
    return [
        "condition",
        "train",
        *PROMPTS,
        "--model",
        str(folder),
        "--classifier",
        classifier,
        "--train-steps",
        str(steps),
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--rank",
        "2",
        "--cfg",
        "2",
        "--checkpoint-every",
        "1",
        "--quiet",
        *([] if "--sample-every" in more else ["--sample-every", "0"]),
        *([] if "ppo" in more else ["--truncation", "all"]),
        "--out",
        str(out),
        *more,
    ]


def test_classifiers_on_a_device_of_their_own_teach_the_same(here, folder, monkeypatch, capsys):
    asked, call = [], Elsewhere.__call__
    monkeypatch.setattr(Elsewhere, "__call__", lambda self, *given: asked.append(self.device) or call(self, *given))
    for device in ((), ("--reward-device", "cpu")):
        assert main(words(folder, "".join(device[-1:]) or "plain", *device, steps=1)) == 0
        assert asked == ["cpu"] * bool(device) * len(asked) and bool(asked) == bool(device)
    assert (here / "plain" / "embedding.safetensors").read_bytes() == (here / "cpu" / "embedding.safetensors").read_bytes()
    assert main(words(folder, "there", "--reward-device", "cuda:7")) == 2 and not (here / "there").exists()
    assert "there is no device 'cuda:7' here: use --reward-device auto or cpu" in capsys.readouterr().err


def test_labels_go_where_pictures_are(fitted):
    class Codes(torch.Tensor):
        def to(self, *given):
            gone.append(given)
            return self.as_subclass(torch.Tensor)

    gone: list = []
    images = torch.rand(2, 3, 16, 16)
    Obedience({"bright": fitted}, {"bright": torch.tensor([0, 1]).as_subclass(Codes)})(images, PROMPTS)
    assert gone[0] == (images.device,)


@pytest.mark.parametrize("place", ["latent", "score", "time"])
def test_a_control_that_has_learnt_nothing_is_pocket_bit_for_bit(place, fitted, pocket):
    run = make_control_trainer(pocket, [fitted], PROMPTS, place=place, rank=2, steps=3, batch_size=2)
    control = run.control()
    asked = {"steps": 3, "images": 2, "seed": 5, "batch_size": 4}
    base = tl.generate(pocket, PROMPTS, **asked)
    mine = tl.condition_sample(control, PROMPTS, {"bright": "yes"}, **asked)
    assert torch.equal(mine.images, base.images)
    assert [r["kl"] for r in mine.manifest["images"]] == [0.0] * 4


def test_the_gradient_is_that_of_gamma_log_p_less_the_path_kl(small, fitted):
    """Written out with autograd: two steps, both open, of a control whose weights are random. Float32: 1e-3 relative."""
    settings = {"gamma": 7.0, "kl": 0.5, "truncation": "all", "rank": 2, "steps": 2, "cfg": 2.0, "batch_size": 2, "seed": 3}
    run = make_control_trainer(small, [fitted], PROMPTS, **settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in run.state.parameters.values():
            p.copy_(0.1 * torch.randn_like(p))
    loss = next(iter(run.objective(run.batches(0, {}))))
    loss.value.backward()
    found = {name: p.grad.clone() for name, p in run.state.parameters.items()}
    for p in run.state.parameters.values():
        p.grad = None

    who = batch_identities(PROMPTS, 3, 0, 2, 1)
    y = draw_labels({"bright": (2, (0, 0))}, 2, 3, 0)["bright"].long()
    text, empty = small.encode_prompts([w.prompt for w in who]), small.encode_prompts(["", ""])
    table = run.augmented.embedding.tables["bright"]
    x, far = rng.normal(who, 1, small.latent_shape, 0)[:, 0], 0.0
    grid = small.schedule.grid(2)
    for i, (t, s) in enumerate(pairwise(grid)):
        with lora_off(small.unet):
            plain, none = small.network(x, t, text), small.network(x, t, empty)
        base = none + 2.0 * (plain - none)
        mine = base + small.network(x + table[y].reshape(x.shape), t, text) - plain
        a = t.alpha / s.alpha
        std = s.sigma * math.sqrt(t.sigma**2 - a**2 * s.sigma**2) / t.sigma
        means = [
            s.alpha * (t.alpha * x - t.sigma * v) + math.sqrt(max(s.sigma**2 - std**2, 0)) * (t.alpha * v + t.sigma * x)
            for v in (mine, base)
        ]
        if std == 0:  # nothing would price leaving the model there, so the step is the model's own
            means[0] = means[1]
        else:
            far = far + (means[0] - means[1]).flatten(1).square().sum(1) / (2 * std**2)
        x = means[0] + std * rng.normal(who, 1, small.latent_shape, i + 1)[:, 0]
    wanted = -7.0 * fitted.log_prob(small.decode(x), y).mean() + 0.5 * far.mean()
    wanted.backward()
    assert loss.value.item() == pytest.approx(wanted.item(), rel=1e-4)
    for name, p in run.state.parameters.items():
        assert torch.allclose(found[name], p.grad, rtol=1e-3, atol=1e-4 * p.grad.abs().max().item()), name
    run.control()


@pytest.mark.slow
def test_two_controls_that_were_trained_apart_are_both_obeyed_together(small):
    """One of red, one of blue: drawn together, on noise that training has not seen, each answers to its own label whatever the
    other is asked for, and what is asked for is likelier on average than of the base model."""
    fits = {name: bright_fit(small, name, seed=k, channels=(k,)).classifier for k, name in ((0, "red"), (2, "blue"))}
    options = {"steps": 4, "batch_size": 8, "gamma": 100.0, "truncation": "all", "rank": 2, "cfg": 2.0, "lora_lr": 5e-3}
    made = [
        tl.condition_train(small, fit, PROMPTS, train_steps=30, embedding_lr=0.1, **options).control for fit in fits.values()
    ]
    shape = {"steps": 4, "images": 10, "cfg": 2.0, "batch_size": 20, "seed": 1}

    def log_p(images, name, value):
        return fits[name].log_prob(images, torch.full((20,), fits[name].schema.target(value))).mean().item()

    pairs = [{"red": red, "blue": blue} for red in ("yes", "no") for blue in ("yes", "no")]
    drawn = [tl.condition_sample(made, PROMPTS, asked, **shape).images for asked in pairs]
    base = tl.generate(small, PROMPTS, **shape).images
    for name in fits:
        yes = [log_p(images, name, "yes") for images in drawn]
        moved = [yes[0] - yes[2], yes[1] - yes[3]] if name == "red" else [yes[0] - yes[1], yes[2] - yes[3]]
        gain = (
            sum(log_p(x, name, asked[name]) - log_p(base, name, asked[name]) for x, asked in zip(drawn, pairs, strict=True)) / 4
        )
        print(f"{name}: log p(yes) of asking yes less asking no {moved}, gain of what is asked {gain:.3f}")
        assert min(moved) > 0.05
        assert gain > 0.05


@pytest.mark.slow
def test_training_raises_log_p_on_noise_it_has_not_seen(small, fitted):
    """Forty steps on an easy label: held-out log p rises by a tenth of a nat or more, the base model stays what it was."""
    asked = {"steps": 4, "images": 10, "cfg": 2.0, "batch_size": 20, "seed": 1}
    before = tl.generate(small, PROMPTS, **asked).images
    options = {"steps": 4, "batch_size": 4, "gamma": 100.0, "truncation": "all", "rank": 2, "cfg": 2.0}
    trained = tl.condition_train(small, fitted, PROMPTS, train_steps=40, lora_lr=5e-3, embedding_lr=0.1, **options)
    assert trained.history[0]["kl"] == 0.0
    assert trained.history[-1]["kl"] > 0.0
    assert trained.control.info.effective_gamma == 100.0
    assert torch.equal(tl.generate(small, PROMPTS, **asked).images, before)
    rise = []
    for value in ("no", "yes"):
        drawn = tl.condition_sample(trained.control, PROMPTS, {"bright": value}, **asked)
        y = torch.full((20,), float(value == "yes"))
        now, then = fitted.log_prob(drawn.images, y), fitted.log_prob(before, y)
        assert drawn.manifest["summary"]["labels"]["bright"]["log_prob"] == pytest.approx(now.mean().item(), abs=1e-4)
        rise.append((now - then).mean().item())
    print("rise of log p:", rise)
    assert sum(rise) / 2 > 0.1
    assert min(rise) > 0.0


def first_log_p(small, log_p):
    """Mean log p of the first batch of `words`: base images of its identities, its labels."""
    who = batch_identities(PROMPTS, 0, 0, 4, 1)
    drawn = [e for e in draw(small, plan(small, who, steps=2, cfg=2.0, eta=1.0)) if isinstance(e, Drawn)]
    y = draw_labels({next(iter(log_p)): (2, (0, 0))}, 4, 0, 0)
    return next(iter(log_p.values()))(drawn[0].images, next(iter(y.values()))).mean().item()


def test_a_killed_run_goes_on_bit_for_bit(here, folder, small, fitted, monkeypatch):
    assert main(words(folder, "whole")) == 0
    from tilting.conditioning.classifiers import Obedience

    calls, call = [0], Obedience.__call__

    def broken(self, images, prompts):
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return call(self, images, prompts)

    monkeypatch.setattr(Obedience, "__call__", broken)
    assert main(words(folder, "cut")) == 130
    assert len(read_lines(here / "cut" / "metrics.jsonl")) == 2
    monkeypatch.setattr(Obedience, "__call__", call)
    assert main(words(folder, "cut")) == 0
    names = ("metrics.jsonl", "embedding.safetensors", "lora/pytorch_lora_weights.safetensors", "control.json")
    for name in names:
        assert (here / "cut" / name).read_bytes() == (here / "whole" / name).read_bytes(), name
    rows = read_lines(here / "whole" / "metrics.jsonl")
    assert rows[0]["kl"] == 0.0
    assert rows[0]["log_prob"] == pytest.approx(first_log_p(small, {"bright": fitted.log_prob}), abs=1e-5)
    assert rows[0]["reward"] == pytest.approx(10 * rows[0]["log_prob"], rel=1e-5)
    manifest = json.loads((here / "whole" / "manifest.json").read_text())
    assert manifest["summary"]["effective_gamma"] == 10.0
    assert "effective γ 10" in describe(manifest)
    assert main(words(folder, "whole")) == 0  # nothing is left to do
    assert main(words(folder, "whole", "--gamma", "3")) == 2  # another run


def test_the_average_of_a_control_is_a_control_that_resumes_and_can_be_drawn_with(here, folder, small, fitted, monkeypatch):
    """By hand, over the raw weights of every step that are kept; killed, it goes on to the same bits."""
    more = ("--ema", "0.5", "--keep-every", "1", "--schedule", "cosine", "--warmup", "1", "--lora-alpha", "4")
    assert main(words(folder, "whole", *more)) == 0
    from tilting.conditioning.classifiers import Obedience

    calls, call = [0], Obedience.__call__

    def broken(self, images, prompts):
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return call(self, images, prompts)

    monkeypatch.setattr(Obedience, "__call__", broken)
    assert main(words(folder, "cut", *more)) == 130
    monkeypatch.setattr(Obedience, "__call__", call)
    assert main(words(folder, "cut", *more)) == 0
    for name in ("embedding.safetensors", "lora/pytorch_lora_weights.safetensors", "control.json"):
        assert (here / "cut" / "ema" / name).read_bytes() == (here / "whole" / "ema" / name).read_bytes(), name
    raw = [load_file(here / "whole" / "kept" / f"00000{k}" / "embedding.safetensors")["tables.bright"] for k in (1, 2, 3)]
    found = load_file(here / "whole" / "ema" / "embedding.safetensors")["tables.bright"]
    assert torch.allclose(found, 0.25 * 0.5 * raw[0] + 0.25 * raw[1] + 0.5 * raw[2], rtol=1e-5, atol=1e-8)  # from 0
    assert found.abs().max() > 0 and read_control(here / "whole" / "kept" / "000002").training["train_steps"] == 2
    sample = ["condition", "sample", "a fox", "--model", str(folder), "--control", "whole/ema", "--label", "bright=yes"]
    assert main([*sample, "--steps", "2", "--out", "drawn", "--quiet"]) == 0
    options = {"train_steps": 3, "steps": 2, "batch_size": 4, "rank": 2, "cfg": 2.0, "truncation": "all"}
    asked = {"ema": 0.5, "schedule": "cosine", "warmup": 1, "lora_alpha": 4.0}
    trained = tl.condition_train(small, fitted, PROMPTS, **options, **asked)
    assert trained.ema is not None
    mine = trained.ema.augmented.embedding.state_dict()["tables.bright"]
    assert torch.allclose(mine, found, rtol=1e-4, atol=1e-7)


def test_a_classifier_without_gradient_is_climbed_by_ppo(here, folder, small, capsys):
    assert main(words(folder, "ctl", classifier="f.py:dark")) == 2
    assert "--planner ppo" in capsys.readouterr().err
    assert not (here / "ctl").exists()
    assert main(words(folder, "ctl", "--planner", "ppo", classifier="f.py:dark", steps=2)) == 0
    rows = read_lines(here / "ctl" / "metrics.jsonl")
    space: dict = {}
    exec(FUNCTION, space)
    by_hand = first_log_p(small, {"dark": lambda images, y: space["dark"](images, []).gather(1, y.long()[:, None])[:, 0]})
    assert rows[0]["log_prob"] == pytest.approx(by_hand, abs=1e-4)
    info = read_control("ctl")
    assert (info.planner, info.labels[0].label, info.labels[0].classes) == ("ppo", "dark", ("no", "yes"))
    control = tl.load_control("ctl", small)
    assert control.augmented.embedding.tables["dark"].abs().max() > 0
    assert control.classifiers == {}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--classifier", "NONE"], "there is no classifier in 'NONE'"),
        (["--classifier", "FIT"], "two classifiers have the label 'bright'"),
        (["--place", "latnet"], "did you mean 'latent'"),
        (["--planner", "pppo"], "did you mean 'ppo'"),
        (["--gamma", "0"], "gamma must be above 0"),
        (["--eta", "0"], "eta must be above 0"),
        (["--steps", "1"], "steps must be at least 2"),
        (["--warmup", "90"], "warmup 90 would not end in"),
        (["--planner=ppo"], "truncation says where --planner backprop has a gradient"),
        (["--accumulate", "3"], "batch-size 4 does not divide into 3"),
        (["--classifier", "f.py:unnamed"], "needs an attribute classes"),
    ],
)
def test_refusals(here, folder, capsys, more, said):
    given = words(folder, "ctl")
    assert main([*given, *more] if "--classifier" in more else over(given, *more)) == 2
    assert said in capsys.readouterr().err
    assert not (here / "ctl").exists()


def test_a_control_does_not_go_on_with_other_prompts_nor_with_none(here, folder, capsys):
    assert main(words(folder, "ctl", steps=1)) == 0
    bare = ["pocket" if w == str(folder) else w for w in words(folder, "ctl", steps=1) if w not in PROMPTS]
    capsys.readouterr()
    assert main([*words(folder, "ctl", steps=1), "a dog"]) == 2
    assert "other prompts" in capsys.readouterr().err
    # none at all is all that pocket draws, and not named: a request of it, and a run of the same but with prompts
    assert main([*bare, "--print-config"]) == 0
    path, asked = here / "ctl" / "manifest.json", yaml.safe_load(capsys.readouterr().out)
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "config": {**manifest["config"], **asked, "prompts": PROMPTS}}))
    assert main(bare) == 2
    assert "other prompts" in capsys.readouterr().err


def test_steps_whose_classifier_gives_no_probabilities_are_skipped_and_say_why(here, folder):
    assert main(words(folder, "ctl", "--planner", "ppo", classifier="f.py:wrong", steps=1)) == 2  # no step moved anything
    assert json.loads((here / "ctl" / "manifest.json").read_text())["summary"]["finished"] is False
    (row,) = read_lines(here / "ctl" / "metrics.jsonl")
    assert row["reward"] is None
    assert "those of each image sum to 1" in row["why"]
    assert tl.load_control("ctl", tl.load(str(folder))).augmented.embedding.tables["wrong"].abs().max() == 0


def test_without_prompts_pocket_trains_on_all_it_draws_and_other_models_are_asked(here, folder, capsys):
    from tilting.models.words import load_words

    listed = resolve_train({"classifier": ["FIT"]}).all_prompts()
    assert len(set(listed)) == len(load_words().concepts)
    with pytest.raises(TiltingError, match="say which prompts"):
        resolve_train({"classifier": ["FIT"], "model": str(folder)})


@pytest.mark.slow
def test_two_processes_are_one(here, folder):
    """The embedding's gradient is averaged: within 1e-4 of one process after three steps, in float32."""
    for process in launched(here, *words(folder, "two")):
        assert process.wait() == 0, process.said()
    assert main(words(folder, "one")) == 0
    one, two = (load_file(here / name / "embedding.safetensors") for name in ("one", "two"))
    assert torch.allclose(one["tables.bright"], two["tables.bright"], rtol=1e-3, atol=1e-5)
    assert one["tables.bright"].abs().max() > 1e-2
    for a, b in zip(*(read_lines(here / name / "metrics.jsonl") for name in ("one", "two")), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    assert json.loads((here / "two" / "manifest.json").read_text())["summary"]["processes"] == 2


def test_ppo_refuses_what_it_has_no_use_for_in_python_too_and_its_config_reads_back(here, small, fitted, folder):
    with pytest.raises(TiltingError, match="leave it out"):
        tl.condition_train(small, fitted, PROMPTS, planner="ppo", truncation="all")
    asked = {"classifier": ["FIT"], "prompts": PROMPTS, "model": str(folder), "planner": "ppo"}
    config = resolve_train(asked)
    assert resolve_train(config.mapping()) == config


@pytest.mark.parametrize("planner", ["backprop", "ppo"])
def test_log_p_is_of_all_parts_of_a_batch(small, fitted, planner):
    found, options = [], {"steps": 2, "cfg": 2.0, "batch_size": 8, "rank": 2, "planner": planner}
    for parts in (1, 4):
        run = make_control_trainer(small, [fitted], PROMPTS, accumulate=parts, **options)
        found.append(next(iter(run.steps(1))).numbers)
        run.control()
    for key in ("log_prob.bright", "loss", "gradient_norm"):
        assert found[1][key] == pytest.approx(found[0][key], rel=1e-4, abs=1e-5)


def test_without_a_kl_there_is_no_gamma_against_it_and_no_silent_step(here, folder, small, fitted, capsys):
    """Files stay JSON, in which infinity is not; a gradient in the last step alone reaches the control."""
    assert main([*words(folder, "ctl", "--kl", "0", steps=1), "--json"]) == 0

    def constant(text):
        raise AssertionError(text)

    for name in ("control.json", "manifest.json"):
        json.loads((here / "ctl" / name).read_text(), parse_constant=constant)
    assert read_control("ctl").effective_gamma is None
    assert "no KL" in describe(json.loads((here / "ctl" / "manifest.json").read_text()))
    settings = {"kl": 0.0, "truncation": "random", "rank": 2, "steps": 2, "cfg": 2.0, "batch_size": 2}
    run = make_control_trainer(small, [fitted], PROMPTS, **settings)
    losses = [next(iter(run.objective(run.batches(step, {})))) for step in range(6)]
    late = next(loss for loss in losses if loss.numbers["open_steps"] == 1)
    late.value.backward()
    assert run.augmented.embedding.tables["bright"].grad.abs().max() > 0
    run.control()


def test_an_old_description_with_infinity_in_it_still_loads(here, small, fitted):
    random_control(small, [fitted]).save(here / "ctl")
    path = here / "ctl" / "control.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "effective_gamma": math.inf}))
    control = tl.load_control(here / "ctl", small)
    assert control.info.effective_gamma is None
    control.save(here / "again")


def test_ppo_pays_for_no_evaluation_twice(small, fitted):
    """An image is drawn (three steps) and its two steps with a density are scored once; the KL's base is part of that call."""
    run = make_control_trainer(small, [fitted], PROMPTS, planner="ppo", rank=2, steps=3, cfg=2.0, batch_size=2)
    assert next(iter(run.steps(1))).numbers["evaluations"] == 2 * (3 + 2)
    run.control()


def test_samples_show_what_a_control_draws_while_it_is_trained(here, folder, small, fitted, capsys):
    """Before training they are the pre-trained model's; what they come to is told beside that."""
    asked = words(folder, "out", "--sample-every", "2", steps=2)
    asked.remove("--quiet")
    assert main(asked) == 0
    told = capsys.readouterr().out
    summary = json.loads((here / "out" / "manifest.json").read_text())["summary"]
    first, last = summary["samples"]
    assert (first["step"], first["kl"], last["step"]) == (0, 0.0, 2) and last["kl"] > 0
    assert [path.name for path in sorted((here / "out" / "samples").iterdir())] == ["000000.png", "000002.png"]
    obeyed = round(last["labels"]["bright"]["obeys"] * last["images"])
    assert f"samples: bright=any obeyed {obeyed} of {last['images']}, KL" in told and (here / "out" / "curve.png").is_file()
    plain = tl.generate(small, PROMPTS, steps=2, cfg=2.0, eta=1.0, progress=False).images  # index 0 of each prompt
    read = read_images(fitted, "no", plain) + read_images(fitted, "yes", plain)
    assert first["labels"]["bright"]["obeys"] == pytest.approx(sum(one["obeys"] for one in read) / len(read))


@pytest.mark.parametrize("slope", [1 / 15, 0.4, 2.0])
@pytest.mark.parametrize("target", [10.0, 30.0, 100.0, 300.0])
def test_a_kl_comes_to_its_target_and_not_far_beyond(here, target, slope):
    """Of weights that go to where γ draws them, a KL of so many nats for each of γ, by steps of one size, as Adam's are, each
    batch's KL within a quarter. From pocket's own γ, 7680, it would first go to 17 times 10 nats at a slope of 0.4."""
    gamma = resolve_train({"classifier": ["FIT"], "prompts": PROMPTS, "kl_target": target, "out": "out"}).gamma
    assert gamma == target
    noise, w, speed, memory, seen = random.Random(0), 0.0, 0.0, {}, []
    for _ in range(150):
        speed = 0.9 * speed + 0.1 * max(-1.0, min(1.0, (math.sqrt(slope * gamma) - w) / 3))
        w = max(0.0, w + 0.65 * speed)
        seen.append(w * w)
        gamma = follow(gamma, w * w * math.exp(noise.gauss(0, 0.25)), target, memory)
    assert max(seen) < 1.6 * target
    assert sum(abs(math.log(kl / target)) for kl in seen[70:]) / 80 < 0.25


def test_gamma_follows_a_kl_that_is_aimed_at(here, folder, small, fitted, capsys):
    """At a KL above the target γ falls by what the rule says, and is what the next step's reward is multiplied by."""
    trainer = make_control_trainer(
        small, fitted, PROMPTS, kl_target=1e-3, gamma=50.0, train_steps=3, steps=2, batch_size=4, rank=2, cfg=2.0
    )
    rows = [row.numbers for row in trainer.steps(3)]
    assert trainer.config.truncation == "all"
    gammas = [row["gamma"] for row in rows]
    assert rows[0]["kl"] == 0 and gammas[:2] == [50, 50]  # the base model's
    second, third = (math.log(row["kl"] / 1e-3) for row in rows[1:])
    ahead = second + 0.5 * (third - second) + 12 * 0.15 * (third - second)
    for before, after, far in ((gammas[1], gammas[2], second), (gammas[2], trainer.gamma, ahead)):
        assert after == pytest.approx(before * math.exp(-0.05 * max(-3.0, min(3.0, far))))
    assert trainer.info.gamma == trainer.gamma
    assert rows[2]["reward"] == pytest.approx(gammas[2] * rows[2]["log_prob"], rel=1e-4)
    for more, said in ((("--planner", "ppo"), "planner backprop"), (("--kl", "0"), "leave --kl out")):
        assert main(words(folder, "no", "--kl-target", "1", *more)) == 2
        assert said in capsys.readouterr().err
