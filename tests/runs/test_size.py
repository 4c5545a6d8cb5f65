"""What a run takes: counted by parts on shapes alone, it is what the run itself takes; what fits is chosen, and said."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tilting as tl
from support import today
from support.paths import ROOT
from tilting.cli import main
from tilting.config.finetune import resolve_finetune
from tilting.config.generate import resolve
from tilting.cost import calls_of
from tilting.generation.fit import RESERVE, choose, need_of, peak
from tilting.generation.size import _modes, flop, measured, sizes
from tilting.models.placement import Switches
from tilting.objectives.cost import cost_of
from tilting.training.size import need_of_training

spec = importlib.util.spec_from_file_location("shapes", ROOT / "benchmarks" / "shapes.py")
assert spec is not None and spec.loader is not None
shapes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shapes)


def test_what_lives_is_counted_by_storages_and_weights_are_not_of_it():
    layer = torch.nn.Linear(256, 256, bias=False)
    with FakeTensorMode():
        fake = torch.nn.Linear(256, 256, bias=False).requires_grad_(False)
        x = torch.zeros(1024, 256)
        there = measured(lambda z: fake(z).relu(), x, weights=[fake])
        back = measured(lambda z: fake(z).relu(), x, weights=[fake], back=True)
    assert (there.flop, back.flop) == (2 * 1024 * 256 * 256, 4 * 1024 * 256 * 256)
    assert there.peak == 2 * 1024 * 256 * 4  # the product and its relu
    assert 3 * 1024 * 256 * 4 <= back.peak <= 5 * 1024 * 256 * 4  # what relu keeps, and two slopes
    assert measured(layer, torch.zeros(1024, 256), weights=[layer]).flop == there.flop  # real tensors likewise


def test_flop_by_part_are_those_of_the_whole_run():
    """The oracle: the run itself, counted."""
    method = tl.presets.codex(particles=2, block=1, gradient_block=1, window=(1, 0))
    model, reward = tl.load(), tl.rewards.clip()
    model.name = "without pocket's judge"
    config = resolve({"prompts": ["a fox"], "steps": 3, "method": method.name, "reward": ["clip"]})
    tl.generate(model, ["a fox"], reward, method, steps=3, batch_size=2, progress=False)  # what is kept of words is kept
    counter = _modes()[0]
    with counter:
        tl.generate(model, ["a fox"], reward, method, steps=3, batch_size=2, progress=False)
    found = sizes(config, reward)
    paid = calls_of(method.build(3), 3)
    parts = flop(found, paid._replace(finals=max(1, paid.finals))._asdict())
    words = parts.pop("text encoders")  # which the run before has read
    assert sum(parts.values()) == pytest.approx(counter.get_total_flops(), rel=1e-3) and words > 0
    assert found.weights["network"] == sum(p.nbytes for p in model.unet.parameters())


HALF = {"precision": "bf16", "precision-vae": "bf16", "recompute": True}
CODEX = {"prompts": ["a fox"], "method": "codex", "particles": 4, "reward": ["clip"]}


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    """CoDeX on Stable Diffusion 1.5's shape at 512 x 512, a reward of CLIP ViT-L/14's: (the request, what it takes)."""
    folder = shapes.write("sd15", tmp_path_factory.mktemp("sd15") / "model")
    with FakeTensorMode():
        reward = shapes.Aesthetic()
    config = resolve({**CODEX, **HALF, "model": str(folder), "steps": 100})
    return config, sizes(config, reward)


@pytest.mark.slow
def test_a_tiny_decoder_makes_codex_on_sd15_a_third_cheaper(sd15):
    """512 x 512, T = 100, N = 4; TAESD is AutoencoderTiny as it is by itself."""
    from diffusers import AutoencoderTiny

    config, found = sd15
    paid = need_of(config)[1]
    assert paid.evaluation_grads + paid.evaluations > 400 and found.units["evaluation"].flop == pytest.approx(1.6e12, rel=0.02)
    assert [found.units[key].flop for key in ("decode", "reward")] == pytest.approx(
        [2.514e12, 0.162e12], rel=0.01
    )  # docs/gpu.md
    with FakeTensorMode():
        tiny, x = AutoencoderTiny().eval().requires_grad_(False), torch.zeros(1, 4, 64, 64)
        tiny.enable_gradient_checkpointing()
        looks = [measured(lambda z: tiny.decode(z).sample, x, weights=[tiny], back=back) for back in (False, True)]
    less = replace(
        found, units={**found.units, "look": looks[0], "steep": looks[1]}, weights={**found.weights, "look decoder": 1}
    )
    whole, cheap = (sum(flop(one, paid._asdict()).values()) for one in (found, less))
    assert cheap <= 0.70 * whole and 1e15 < whole < 4e15


@pytest.mark.slow
def test_codex_and_draft_lv_of_512_pixels_fit_into_8_gb_in_half_precision(sd15):
    config, found = sd15
    assert found.weights["network"] == pytest.approx(2 * 859.5e6, rel=0.01)
    tuning = resolve_finetune({**HALF, "prompts": ["a fox"], "model": config.model, "reward": ["clip"], "batch-size": 4})
    for need in (need_of(config)[0], need_of_training(tuning)[0]._replace(rows=1)):
        assert need.network_grad and need.value_grad
        assert peak(found, need, 1, Switches.of(config)).total <= 8e9
    need = need_of(config)[0]
    for room in (8, 80):
        choice, fits = choose(room * 10**9, need, Switches.of(config), lambda recompute: found)
        assert fits and choice.peak.total + RESERVE <= room * 1e9
        assert (choice.rows == need.rows == 4) == (room == 80)


@pytest.mark.parametrize(
    ("name", "weights"), [("sd15", 859.5e6), ("sdxl", 2567.5e6), ("sd35", 2470e6), ("flux", 11901e6), ("wan", 1419e6)]
)
def test_a_shape_has_as_many_weights_as_the_real_network(name, weights):
    import diffusers

    kind, config = shapes.SHAPES[name].get("unet") or shapes.SHAPES[name]["transformer"]
    with torch.device("meta"):
        network = getattr(diffusers, kind).from_config(config)
    assert sum(p.numel() for p in (*network.parameters(), *network.buffers())) == pytest.approx(weights, rel=0.01)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_pipeline_is_counted_without_its_weights(name, tmp_path):
    folder = today.write(name, tmp_path / name)
    pipe = today.MAKERS[name]()
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    found = sizes(resolve({"prompts": ["a fox"], "model": str(folder), "cfg": 2.0, "height": 16, "width": 16}), count=False)
    held = sum(p.nbytes for part in pipe.components.values() if isinstance(part, torch.nn.Module) for p in part.parameters())
    assert sum(found.weights.values()) == held and found.weights["reward"] == 0
    four, eight, plain = (found.packed[bits][0] for bits in ("4bit", "8bit", None))
    assert four < eight < plain and found.units["round"].peak >= found.units["evaluation"].peak


def test_what_fits_is_chosen_in_the_stated_order():
    """By sizes made up, so that each step is the first that fits."""
    config = resolve({**CODEX, "steps": 4})
    found = sizes(config, None, count=False)
    round_, unit = 10**9, found.units["round"]
    made = {key: one._replace(peak=10**6) for key, one in found.units.items()} | {"round": unit._replace(peak=round_)}
    weights = {"network": 10**9, "autoencoder": 10**8, "look decoder": 0, "text encoders": 3 * 10**9, "reward": 0}
    found = replace(found, units=made, weights=weights, packed={None: (10**9, 10**7)}, encoder=2 * 10**9)
    less = replace(found, units=made | {"round": unit._replace(peak=round_ // 10)})
    need = need_of(config)[0]
    asked = []
    for room in (20, 7, 6.2, 4.5, 1):
        choice, fits = choose(int(room * 1e9), need, Switches(), lambda recompute: less if recompute else found)
        asked.append((choice.rows, choice.switches.offload, choice.switches.recompute, fits))
    assert asked[:3] == [(4, None, False, True), (1, None, False, True), (1, None, False, True)]
    assert asked[3] == (2, "text", False, True)
    assert asked[4][3] is False


def test_memory_is_kept_to_told_and_recorded(tmp_path, capsys):
    words = ["generate", "a fox", "--steps", "2", "--method", "code", "--particles", "4", "--out", str(tmp_path / "a")]
    assert main([*words, "--memory", "1.065GB"]) == 0
    error = capsys.readouterr().err
    assert "memory 1.065GB: " in error and "at once" in error
    config = json.loads((tmp_path / "a" / "manifest.json").read_text())["config"]
    assert config["memory"] == "1.065GB" and config["batch-size"] <= 4
    assert main(words) == 0  # how it was kept to is nothing that a picture is of
    words[-1] = str(tmp_path / "b")
    assert main([*words, "--memory", "1MB"]) == 2
    error = capsys.readouterr().err
    assert (
        "GB as it is asked for, not 1MB: no plan fits, and the smallest is --precision bf16 --precision-vae bf16 --quant"
        in error
    )
    assert error.count("\n") == 1 and error.startswith("tilting: 'pocket' with code takes 1.0")
    assert not (tmp_path / "b" / "images.jsonl").exists()


def test_doctor_counts_a_method_or_an_objective(capsys):
    found = []
    for words in (["--method", "code", "--steps", "4"], ["--objective", "draft-lv", "--steps", "4", "--size"]):
        assert main(["doctor", *words, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    for one in found:
        assert set(one["plans"]) == {"8", "12", "16", "24", "48", "80"} and one["tflop"]["all"] > 0
        assert one["tflop"]["all"] == pytest.approx(sum(value for key, value in one["tflop"].items() if key != "all"))
    assert found[1]["gigabytes"]["LoRA and optimiser"] > 0 and "LoRA and optimiser" not in found[0]["gigabytes"]
    assert main(["doctor", "--method", "code", "--objective", "draft"]) == 2
    assert "give one of --method and --objective" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["draft-lv", "ddpo", "adjoint"])
def test_what_has_a_gradient_is_told_apart(name):
    paid = cost_of(tl.objectives.OBJECTIVES[name](), 5)
    assert 0 < paid.evaluation_grads <= paid.evaluations and 0 <= paid.value_grads <= paid.reward_calls
    assert (paid.value_grads > 0) == tl.objectives.OBJECTIVES[name]().needs_gradient
    config = resolve_finetune({"prompts": ["a fox"], "objective": name, "steps": 5})
    assert need_of_training(config)[0].rows == config.batch_size
