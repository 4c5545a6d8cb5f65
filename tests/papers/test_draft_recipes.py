"""The DRaFT recipes at miniature size: costs that training counts, gradients by plain autograd, verdicts on numbers made
by hand, a killed arm that goes on, and one recipe end to end whose rows `tilting generate` draws again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import tilting_papers
from support.commands import manifest
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.objectives import draft_lv
from tilting.objectives.cost import cost_of
from tilting.training.folder import read_lines
from tilting.training.processes import Engine
from tilting.training.run import Parts, load_parts, trainer_of
from tilting_papers import RECIPES
from tilting_papers.cache import PartsCache
from tilting_papers.draft import gradients, variance, zero_shot
from tilting_papers.draft.charts import tile
from tilting_papers.draft.evaluate import evaluate_variant
from tilting_papers.draft.measure import protocol_of, requests_of
from tilting_papers.draft.study import Protocol, Size, Training, Variant, of_fifty
from tilting_papers.draft.training import config_of, seconds_of, train
from tilting_papers.recipe import Run

STUDIES = [name for name in RECIPES if name.startswith("draft-")]
TINY = Size(steps=3, train_steps=4, batch=2, images=2, evaluations=2)
PROMPTS = ("a fox", "an owl")


def study_of(name):
    return RECIPES[name]


@pytest.fixture(scope="module")
def cache():
    return PartsCache(load_parts)


def asked(run, out="unused", size=TINY):
    return config_of(run, PROMPTS, ("clip",), size, True, Path(out), 0)


# Requests, without training


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_is_a_request_that_can_work_and_all_of_them_fit_the_budget(name, tmp_path):
    study = study_of(name)
    assert len({run.name for run in study.runs}) == len(study.runs) and any(run.small for run in study.runs)
    for small in (False, True):
        run = Run(study, tmp_path, small, print)
        found, protocol = requests_of(run), protocol_of(run)
        minutes = {name: seconds_of(config, protocol) / 60 for name, config in found.items()}
        assert sum(minutes.values()) < (0.5 if small else 120)
        shards = [replace(run, shard=(i + 1, 3), say=lambda line: None).share(minutes) for i in range(3)]
        assert sorted(name for one in shards for name in one) == sorted(found)
        assert max(sum(minutes[n] for n in one) for one in shards) < 45
        assert all(c.train_steps * c.batch_size <= 2000 for c in found.values() if c.objective == "ddpo")
    table = yaml.safe_load((Path(tilting_papers.__file__).with_name("published.yaml")).read_text())
    for run in study.runs:
        assert run.published is None or table[study.published[0]][run.published] > 0


def test_steps_of_fifty_are_the_same_share_of_t():
    assert [of_fifty(k, 20) for k in (1, 5, 10, 30, 50)] == [1, 2, 4, 12, 20]
    assert [of_fifty(k, 5) for k in (1, 5, 10, 30, 50)] == [1, 1, 1, 3, 5]


def test_seeds_of_training_are_runs_of_their_own_looked_at_alike(tmp_path):
    run = Run(study_of("draft-fig3"), tmp_path, False, print, seed=5)
    found = requests_of(run)
    assert [name for name in found if name.startswith("refl")] == ["refl", "refl.s1", "refl.s2"]
    assert [found[name].seed for name in ("refl", "refl.s1", "refl.s2")] == [5, 6, 7]
    assert {found[name].out for name in found} == {str(tmp_path / "runs" / name) for name in found}
    assert protocol_of(run).seed == 5 and protocol_of(run).about["between"] == 1
    assert list(protocol_of(run).along().sets) == ["train"] and list(protocol_of(run).sets) == ["train", "held-out"]


@pytest.mark.slow
def test_a_study_made_in_shards_is_whole(tmp_path, capsys):
    words = ["recipe", "draft-fig28", "--small", "--out", str(tmp_path), "--quiet", "--json"]
    assert main([*words, "--shard", "1/2"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in first["rows"]] == ["base", "draft-1-c0.001", "draft-50-c0.001"]  # a dear and a cheap one
    assert not any(claim["finding"] for claim in first["claims"])  # each of which needs two of a kind
    assert main([*words, "--shard", "2/2"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert len(second["rows"]) == 5 and all(claim["finding"] for claim in second["claims"])
    made = {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").rglob("*") if f.is_file()}
    assert main(words) == 0 and json.loads(capsys.readouterr().out) == second
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").rglob("*") if f.is_file()} == made


@pytest.mark.parametrize(
    ("recipe", "shard", "words"),
    [("draft-fig28", "3/2", "must be such as 2/3"), ("draft-fig28", "x", "2/3"), ("mixture-bias", "1/2", "not made in parts")],
)
def test_a_shard_that_cannot_be_is_refused(recipe, shard, words, tmp_path, capsys):
    assert main(["recipe", recipe, "--shard", shard, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_shards_are_even(tmp_path):
    said: list[str] = []
    run = Run(study_of("draft-fig10"), tmp_path, False, said.append, shard=(2, 2))
    assert run.share({"a": 5.0, "b": 9.0, "c": 3.0, "d": 2.0}) == ["a", "c", "d"]  # 9 | 5 + 3 + 2: each to the one with less
    assert "about 19 min" in said[0] and "2 shard(s) of at most 10; 3 here" in said[0]
    assert replace(run, shard=None).share({"a": 1.0, "b": 2.0}) == ["a", "b"]


# Costs and gradients against the chain


COSTED = {
    "draft": Training("a", "draft"),
    "draft-k": Training("a", "draft-k", {"k": 2}),
    "eps": Training("a", "draft-k", {"eps_kl": 1.0}),
    "lv-eps": Training("a", "draft-lv", {"eps_kl": 1.0}),
    "lv": Training("a", "draft-lv", {"copies": 3}),
    "single": Training("a", "draft-lv", {"single": True}),
    "refl": Training("a", "refl", {"last": 1}),
    "ddpo": Training("a", "ddpo"),
    "dpg": Training("a", "dpg"),
    "epochs": Training("a", "ddpo", {"kl": 0.1, "epochs": 2}),
}


@pytest.mark.parametrize("kind", COSTED)
def test_what_an_image_costs_is_what_training_counts(kind, cache):
    config = asked(COSTED[kind])
    tuning = trainer_of(config, cache.parts(config), Engine())
    rows = list(tuning.steps(1))
    cost = cost_of(config.made_objective, config.steps)
    assert rows[-1].skipped is None
    assert tuning.costs["evaluations"] == cost.evaluations * tuning.costs["images"] == cost.evaluations * 2
    if kind != "dpg":  # a critic's calls are not reward queries
        assert tuning.costs["reward_calls"] == cost.reward_calls * 2


@pytest.fixture(scope="module")
def tuned(cache):
    """A run whose LoRA has moved, so that A has a gradient too."""
    config = asked(Training("a", "draft-k"))
    tuning = trainer_of(config, cache.parts(config), Engine())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in tuning.state.parameters.items():
            if "lora_B" in name:
                p.copy_(0.05 * torch.randn(p.shape, generator=generator))
    return tuning


def by_hand(tuning, k):
    """-mean r of DDIM written out, gradients in the last k steps, nothing checkpointed."""
    world, model = tuning.batches(5, {}), tuning.model
    denoise = model.denoiser([w.prompt for w in world.who], 4.0)
    x, rows = world.noise(0), torch.arange(2)
    for i in range(3):
        t, s = world.grid[i], world.grid[i + 1]
        with torch.set_grad_enabled(i >= 3 - k):
            eps, x0, _ = denoise(x, t, rows)
            x = s.alpha * x0 + s.sigma * eps
    loss = -tuning.batches.reward(model.decode(x), [w.prompt for w in world.who]).mean()
    found = torch.autograd.grad(loss, list(tuning.state.parameters.values()))
    return torch.cat([g.flatten() for g in found]).double().numpy()


def test_gradients_norms_and_angles_are_those_of_plain_autograd(tuned):
    ks = [1, 2, 3]
    found = gradients.gradients(tuned, ks, 5)
    want = {k: by_hand(tuned, k) for k in ks}
    for k in ks:
        assert np.abs(found[k].numpy() - want[k]).max() < 1e-4 * np.abs(want[k]).max()
    (row,) = gradients.measured(tuned, ks, 1, since=5)
    norms = [np.linalg.norm(want[k]) for k in ks]
    assert row["norm"] == pytest.approx(norms, rel=1e-4)
    angles = [math.degrees(math.acos(np.clip(want[k] @ want[3] / norms[k - 1] / norms[2], -1, 1))) for k in ks]
    assert row["to_full"] == pytest.approx(angles, abs=0.1) and angles[0] > 1
    firsts = [math.degrees(math.acos(np.clip(want[k] @ want[1] / norms[k - 1] / norms[0], -1, 1))) for k in ks]
    assert row["to_first"] == pytest.approx(firsts, abs=0.1)


def nested(means, generator, spread):
    """Gradients (P, m, n, 2) with effects of a prompt, an image and a copy, of these standard deviations."""
    p, i, c = (torch.randn(*size, 2, generator=generator, dtype=torch.float64) for size in spread[1])
    return means + spread[0][0] * p + spread[0][1] * i + spread[0][2] * c


def test_variance_components_are_those_of_the_law_and_of_a_table_by_hand():
    generator, total = torch.Generator().manual_seed(0), torch.zeros(3, dtype=torch.float64)
    sizes = ((4, 1, 1), (4, 3, 1), (4, 3, 2))
    for _ in range(400):
        g = nested(1.0, generator, ((2.0, 1.0, 0.5), sizes))
        gram = torch.einsum("pmnd,qkld->pmnqkl", g, g)
        total += torch.tensor(variance.components(gram), dtype=torch.float64)
    assert (total / 400).tolist() == pytest.approx([8.0, 2.0, 0.5], rel=0.12)  # two dimensions of each
    g = torch.tensor([0.0, 2.0, 4.0, 6.0, 1.0, 1.0, 3.0, 3.0], dtype=torch.float64).reshape(2, 2, 2)
    gram = torch.einsum("pmn,qkl->pmnqkl", g, g)  # means of images 1, 5 and 1, 3, of prompts 3 and 2
    ms_copy, ms_image, ms_prompt = 4 / 4, 2 * (8 + 2) / 2, 4 * 0.5 / 1
    assert variance.components(gram) == pytest.approx(((ms_prompt - ms_image) / 4, (ms_image - ms_copy) / 2, ms_copy))
    own = torch.tensor([[[0.0, 3.0, 3.0], [2.0, 5.0, 5.0]]], dtype=torch.float64)  # samples 0 and 2, means 2 and 4
    assert variance.lowered(torch.einsum("pmn,qkl->pmnqkl", own, own)) == pytest.approx(1.0)
    own[0, :, 1:] = 1.0  # copies that are the same: the mean moves by a third
    assert variance.lowered(torch.einsum("pmn,qkl->pmnqkl", own, own)) == pytest.approx(1 / 9)


def test_gradients_of_the_sample_and_of_copies_add_up_to_draft_lvs(tuned):
    trainer, world = tuned, tuned.batches(5, {})
    parameters = list(trainer.state.parameters.values())
    one = replace(world, who=world.who[:1])
    found = variance.gradients(one, 2, parameters).double().sum(0)
    with torch.enable_grad():
        (loss,) = draft_lv(copies=2)(one)
        want = torch.cat([g.flatten().double() for g in torch.autograd.grad(loss.value, parameters)])
    assert (found - want).abs().max() < 1e-4 * want.abs().max()


def test_angles_of_known_vectors():
    x, y = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert gradients.angle(x, y) == pytest.approx(45) and gradients.angle(x, -x) == pytest.approx(180)
    assert gradients.angle(x, 0 * x) == 90


def test_the_cat_is_clips_own_softmax_over_all_concepts():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    clip = zero_shot._clip()
    names = zero_shot.load_words().concepts
    tokens = clip.tokenizer(
        [zero_shot.write_prompt(zero_shot.load_words(), i) for i in range(len(names))], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = clip.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=clip.preprocess(images)
        ).logits_per_image
    want = logits.log_softmax(-1)[:, names.index("cat")]
    assert torch.allclose(zero_shot.cat(images, ["", ""]), want, atol=1e-4)
    seen = images.clone().requires_grad_(True)
    zero_shot.cat(seen, ["", ""]).sum().backward()
    assert seen.grad is not None and seen.grad.abs().max() > 0


# An arm, killed and resumed; a LoRA at scale 0


class Dies:
    """clip, but the power goes at its n-th call with a gradient."""

    name, differentiable = "clip", True

    def __init__(self, inner, calls):
        self.inner, self.left = inner, calls

    def __call__(self, images, prompts):
        if images.requires_grad:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return self.inner(images, prompts)


class Dying(PartsCache):
    def __init__(self, cache, calls):
        self.cache, self.dies = cache, Dies(cache.reward("clip"), calls)

    def parts(self, config) -> Parts:
        return self.cache.parts(config)._replace(reward=self.dies)

    def reward(self, spec):
        return self.cache.reward(spec)


def timeless(points):
    return [{k: v for k, v in point.items() if k != "seconds"} for point in points]


def test_a_killed_arm_goes_on_from_its_last_look_and_gives_the_same_numbers(cache, tmp_path):
    protocol, run = Protocol({"train": PROMPTS[:1]}, 1, ("clip",), 0), Training("arm", "draft-k")
    whole = train(asked(run, tmp_path / "whole"), protocol, cache)["summary"]
    killed = asked(run, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        train(killed, protocol, Dying(cache, 3))
    assert len(read_lines(tmp_path / "killed/runs/arm/metrics.jsonl")) == 3  # one more than the last look
    summary = train(killed, protocol, cache)["summary"]
    assert timeless(summary["points"]) == timeless(whole["points"]) and [p["step"] for p in whole["points"]] == [0, 2, 4]
    lines = [(tmp_path / f"{name}/runs/arm/metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert lines[0] == lines[1] and len(lines[0].splitlines()) == 4
    loras = [(tmp_path / f"{name}/runs/arm/lora/pytorch_lora_weights.safetensors").read_bytes() for name in ("whole", "killed")]
    assert loras[0] == loras[1]
    with pytest.raises(TiltingError, match="looked at in another way"):
        train(killed, replace(protocol, images=2), cache)
    zero = Variant("zero", ((tmp_path / "whole/runs/arm/lora", 0.0),))
    seen = evaluate_variant(zero, protocol, cache, killed, tmp_path / "whole")["train"]
    assert seen["rewards"]["clip"] == pytest.approx(whole["points"][0]["sets"]["train"]["rewards"]["clip"], abs=1e-6)
    whole_lora = zero._replace(loras=((zero.loras[0][0], 1.0),))
    full = evaluate_variant(whole_lora, protocol, cache, killed, tmp_path / "whole")["train"]
    assert full["rewards"]["clip"] == pytest.approx(whole["points"][-1]["sets"]["train"]["rewards"]["clip"], abs=1e-6)


# End to end


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    out = tmp_path_factory.mktemp("draft") / "fig10"
    assert main(["recipe", "draft-fig10", "--small", "--out", str(out), "--quiet"]) == 0
    return out, json.loads((out / "table.json").read_text())


def test_rows_are_what_generate_draws_with_the_lora_in_those_steps(recipe, tmp_path):
    folder, report = recipe
    steps, rows = report["steps"], {row["name"]: row for row in report["rows"]}
    assert {"base", "draft-1", "last-1", "first-1"} <= set(rows)
    windows = {("last-1", "train"): f"{steps - 1}:{steps}", ("first-1", "train"): "0:1", ("draft-1", "held-out"): None}
    for (name, where), window in windows.items():
        prompts = report["sets"][where]
        out = tmp_path / f"{name}-{where}"
        lora = ["--lora", str(folder / "runs/draft-1"), *(["--lora-steps", window] if window else [])]
        options = ["--steps", str(steps), "--images", "2", "--eta", "0", "--reward", "clip", "--method", "base"]
        assert main(["generate", *prompts, *lora, *options, "--out", str(out), "--quiet"]) == 0
        drawn = manifest(out)["images"]
        mine = rows[name]["sets"][where]
        assert mine["clip"]["mean"]["mean"] == pytest.approx(np.mean([r["reward"] for r in drawn]), abs=1e-5)
        assert mine["judge"]["mean"]["mean"] == pytest.approx(np.mean([r["judge"] for r in drawn]), abs=1e-4)
        place = "runs/draft-1/looks/000004" if name == "draft-1" else f"variants/{name}"
        picture = np.asarray(tile(folder / f"{place}-{where}.png", 1, 0, 2), float)
        file = next(r["file"] for r in drawn if r["prompt"] == prompts[1] and r["index"] == 0)
        assert np.abs(picture - np.asarray(Image.open(out / file).convert("RGB"), float)).max() <= 1
    assert rows["last-1"]["sets"]["train"]["clip"]["mean"] != rows["first-1"]["sets"]["train"]["clip"]["mean"]


def test_gains_are_over_the_arms_own_start_and_everything_is_kept(recipe, capsys):
    folder, report = recipe
    points = json.loads((folder / "runs/draft-1/manifest.json").read_text())["summary"]["points"]
    before, after = (np.array(points[i]["sets"]["train"]["rewards"]["clip"]) for i in (0, -1))
    row = next(row for row in report["rows"] if row["name"] == "draft-1")
    assert row["sets"]["train"]["clip"]["gain"]["mean"] == pytest.approx(np.mean(after - before), abs=1e-9)
    assert row["images"] == 8 and row["reward_calls"] == 8 and row["evaluations"] == 8 * (report["steps"] + 1)
    files = {"table.md", "table.json", "runs", "variants", "parts", *report["figures"]}
    assert {f.name for f in folder.iterdir()} == files
    text = (folder / "table.md").read_text()
    assert all(claim["text"] in text and claim["finding"]["verdict"] in text for claim in report["claims"])
    kept = {f: f.stat().st_mtime_ns for f in (folder / "runs").rglob("*") if f.is_file()}
    assert main(["recipe", "draft-fig10", "--small", "--out", str(folder), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert {f: f.stat().st_mtime_ns for f in (folder / "runs").rglob("*") if f.is_file()} == kept
    assert main(["recipe", "draft-fig10", "--out", str(folder), "--quiet"]) == 2
    assert "another small" in capsys.readouterr().err
