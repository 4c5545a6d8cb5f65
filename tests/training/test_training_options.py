"""What trainings have beside their objective: averaged weights, schedules of the rate, alpha, weights kept on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file

import tilting as tl
from support.drift import AIM, Drift, make
from support.finetuning import REWARDS, Bright, numbers, train
from support.small import write_small
from support.today import write
from tilting.cli import main
from tilting.models.lora import load_lora, parts
from tilting.models.lora_file import FILE
from tilting.models.lora_weights import read_lora, save_lora
from tilting.objectives import OBJECTIVES, draft, draft_k
from tilting.training.average import EMA, Average
from tilting.training.batches import in_parts
from tilting.training.checkpoint import read, states
from tilting.training.folder import read_lines
from tilting.training.loop import Optimiser, TrainState
from tilting.training.loop import train as loop
from tilting.training.trainer import make_trainer

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a file of rewards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(REWARDS)
    return tmp_path


# Averages


def weighted_sum(weights: list[torch.Tensor], d: float) -> torch.Tensor:
    """d^k θ_0 + (1 - d) Σ_j d^(k - j) θ_j, term by term."""
    k = len(weights) - 1
    return d**k * weights[0] + (1 - d) * sum(d ** (k - j) * weights[j] for j in range(1, k + 1))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_average_is_the_weighted_sum_over_the_steps_of_every_objective(mixture, name):
    """By hand, in float64; a skipped step is no step of it, and the run itself is what it is without."""
    d, ends = 0.7, []
    for averaged in (True, False):
        net, optimiser, seen = Drift(4), Optimiser(rate=5e-3), []
        parameters = dict(net.named_parameters())
        averages = {EMA: Average(parameters, lambda step: d)} if averaged else {}
        state = TrainState(parameters, optimiser.build(parameters), averages=averages)
        seen.append(torch.cat([p.detach().flatten() for p in net.parameters()]))

        def world_of(step, memory, net=net):
            def value(x0, rows):
                return x0 @ AIM * (float("nan") if step == 1 else 1.0)

            return make(mixture, net, images=8, steps=3, step=step, memory=memory, value=value, prompts=2)

        for info in loop(state, OBJECTIVES[name](), world_of, optimiser, 5):
            if info.skipped is None:
                seen.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
        assert len(seen) == 5 and not torch.equal(seen[-1], seen[0])
        ends.append(seen[-1])
        if averaged:
            found = torch.cat([v.flatten() for v in averages[EMA].values.values()])
            assert torch.allclose(found, weighted_sum(seen, d), rtol=1e-12, atol=1e-15)
            with averages[EMA].on():
                assert torch.equal(torch.cat([p.detach().flatten() for p in net.parameters()]), found)
            assert torch.equal(torch.cat([p.detach().flatten() for p in net.parameters()]), seen[-1])
    assert torch.equal(*ends)


def test_averaged_weights_lie_beside_the_raw_ones_draw_as_python_averages_and_resume_to_the_bit(here, monkeypatch):
    plain = ("--objective", "draft-k", "--sample-every", "0")  # a call of the reward each step
    words = (*plain, "--ema", "0.6", "--keep-every", "2", "--checkpoint-every", "2")
    assert train(here / "whole", *words, reward="r.py:interrupted", steps=4) == 0
    monkeypatch.setenv("STOP_AT", "4")
    assert train(here / "parts", *words, reward="r.py:interrupted", steps=4) == 130
    assert (here / "parts" / "checkpoints").is_dir()
    monkeypatch.setenv("STOP_AT", "0")
    assert train(here / "parts", *words, reward="r.py:interrupted", steps=4) == 0
    assert numbers(here / "whole") == numbers(here / "parts")
    for place in ("ema", "kept/000002/lora", "kept/000002/ema", "kept/000004/lora", "kept/000004/ema"):
        one, two = (here / name / place / FILE for name in ("whole", "parts"))
        assert one.read_bytes() == two.read_bytes()
    assert not any((here / "whole" / "kept" / f"{k:06d}").exists() for k in (1, 3))
    last = read_lora(here / "whole")
    assert all(torch.equal(v, last[k]) for k, v in read_lora(here / "whole" / "kept" / "000004").items())
    # by hand, over the raw weights that a run without averages keeps of every step
    assert train(here / "raw", *plain, "--keep-every", "1", reward="r.py:interrupted", steps=4) == 0
    kept = [read_lora(here / "raw" / "kept" / f"{k:06d}") for k in range(1, 5)]
    first = {k: torch.zeros_like(v) if ".up." in k else None for k, v in kept[0].items()}
    for key, found in read_lora(here / "whole" / "ema").items():
        if first[key] is not None:  # B begins at 0
            assert torch.allclose(found, weighted_sum([first[key], *(state[key] for state in kept)], 0.6), rtol=1e-5, atol=1e-9)
    model = tl.load("pocket")
    options = {"train_steps": 4, "steps": 3, "rank": 2, "batch_size": 2, "ema": 0.6}
    tuned = tl.finetune(model, ["a fox", "a cat"], Bright(), "draft-k", **options)
    assert tuned.ema is not None
    tuned.ema.save(here / "python")
    mine, theirs = read_lora(here / "python"), read_lora(here / "whole" / "ema")
    assert all(torch.allclose(mine[key], theirs[key], rtol=1e-5, atol=1e-8) for key in theirs)
    assert main(["generate", "a fox", "--lora", "whole/ema", "--steps", "2", "--out", "drawn", "--quiet"]) == 0


def test_a_checkpoint_without_the_average_is_no_checkpoint_of_the_run(here):
    assert train(here / "run", "--ema", "0.6", "--checkpoint-every", "1", "--keep-every", "1", steps=2) == 0
    (here / "run" / "lora" / FILE).unlink()  # so that it is not finished
    for place in states(here / "run" / "checkpoints"):
        assert {key.partition(".")[0] for key in load_file(place / "averages.safetensors")} == {EMA}
        (place / "averages.safetensors").unlink()
    assert train(here / "run", "--ema", "0.6", "--checkpoint-every", "1", "--keep-every", "1", steps=2) == 2
    assert read(here / "run" / "checkpoints").averages == {}


# The learning rate


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_the_rate_is_that_of_diffusers_after_its_warm_up_and_rises_to_it_evenly(name):
    warmup, steps = 4, 20
    ours = Optimiser(rate=2.0, schedule=name, warmup=warmup, steps=steps)
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        torch.optim.SGD([parameter], lr=2.0),
        num_warmup_steps=warmup,
        num_training_steps=steps,
    )
    rates = []
    for _ in range(steps):
        rates.append(theirs.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.step()
    found = [ours.at(step) for step in range(steps)]
    assert found[warmup:] == pytest.approx(rates[warmup:], rel=1e-12)
    assert found[:warmup] == [0.5, 1.0, 1.5, 2.0]
    assert all(rate > 0 for rate in found) and ours.at(steps) == pytest.approx(0 if name != "constant" else 2)
    assert [replace(ours, warmup=0, schedule="constant").at(k) for k in (0, 9)] == [2, 2]


def test_the_command_follows_its_schedule_and_takes_the_former_name(here):
    words = ("--schedule", "linear", "--warmup", "2", "--lr", "1e-3", "--keep-every", "9")
    assert train(here / "run", *words, steps=4) == 0
    rates = [row["rate"] for row in read_lines(here / "run" / "metrics.jsonl")]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4], rel=1e-6)
    assert train(here / "old", "--lr-decay", "sqrt", steps=1) == 0
    assert "schedule: sqrt" not in (here / "old" / "manifest.json").read_text()
    assert '"schedule": "sqrt"' in (here / "old" / "manifest.json").read_text()


# Alpha


def test_alpha_scales_what_is_added_and_the_file_says_so_to_every_reader(here):
    """The first step with alpha: B moves by Adam's ± rate whatever the gradient's size, and the file's B is alpha / rank of
    it; A's gradient is 0 then."""
    model, found = tl.load("pocket"), {}
    for alpha in (2.0, 4.0):
        run = make_trainer(model, "a fox", Bright(), steps=2, rank=2, batch_size=1, lora_alpha=alpha, weight_decay=0.0)
        list(run.steps(1))
        found[alpha] = run.lora()
        raw = {k: v.detach() for k, v in run.state.parameters.items() if ".lora_B." in k}
        assert all(layer.lora_alpha.get("tilting") == alpha for layer in model.unet.modules() if hasattr(layer, "lora_alpha"))
        assert max(v.abs().max() for v in raw.values()) == pytest.approx(4e-4, rel=1e-3)
    ups = [key for key in found[2.0] if ".up." in key]
    big = max(found[2.0][key].abs().max().item() for key in ups)
    assert max(found[4.0][key].abs().max().item() for key in ups) == pytest.approx(2 * big, rel=1e-3)
    images = tl.generate(model, ["a fox"], steps=2, seed=1).images  # the adapter of alpha 4 is on
    save_lora(found[4.0], here / "four")
    again = tl.load("pocket")
    load_lora(again.unet, read_lora(here / "four"), "read")
    assert torch.allclose(tl.generate(again, ["a fox"], steps=2, seed=1).images, images, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ema", "1"), "ema must be below 1"),
        (("--warmup", "-1"), "warmup must be at least 0"),
        (("--warmup", "90"), "warmup 90 would not end in"),
        (("--lora-alpha", "0"), "lora-alpha must be above 0"),
        (("--keep-every", "-1"), "keep-every must be at least 0"),
        (("--schedule", "cosin"), "did you mean 'cosine'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(here, capsys, words, said):
    assert train(here / "no", *words) == 2
    assert said in capsys.readouterr().err and not (here / "no").exists()


# Parts of a batch

WHOLE = [name for name in OBJECTIVES if not OBJECTIVES[name]().splits] + ["opd of a gradient"]
PARTS = [*((name, 2) for name in OBJECTIVES), ("opd of a gradient", 2), *((name, n) for name in WHOLE for n in (4, 8))]
SETTINGS = {
    "ddpo": {"clip": 0.2, "minibatches": 2, "epochs": 2, "reduction": "sum", "kl": 0.1},
    "grpo": {"clip": 0.2, "minibatches": 2, "reduction": "sum", "kl": 0.1},
    "rwr": {"beta": 0.3},
    "dpo": {"beta": 20.0, "group_size": 4},
    "opd of a gradient": {"method": "dps", "epochs": 2},
}


def accumulated(mixture, name: str, parts: int) -> tuple[list[dict], torch.Tensor, int]:
    """Lines and weights of three steps, and the most latents that a network saw at once."""
    net, optimiser, most = Drift(8), Optimiser(rate=5e-3), [0]
    parameters = dict(net.named_parameters())
    state = TrainState(parameters, optimiser.build(parameters))

    def seen(denoise):
        def counted(x, t, rows):
            assert len(x) == len(rows)
            most[0] = max(most[0], len(x))
            return denoise(x, t, rows)

        return counted

    def world_of(step, memory):
        world = make(mixture, net, images=8, steps=4, step=step, memory=memory, prompts=2)
        who = sorted(world.who, key=lambda w: w.prompt)  # groups stand together
        networks = {key: seen(getattr(world, key)) for key in ("denoise", "base", "plain", "base_plain")}
        return replace(world, who=who, **networks)

    objective = in_parts(OBJECTIVES[name.partition(" ")[0]](**SETTINGS.get(name, {})), parts)
    lines = [info.numbers for info in loop(state, objective, world_of, optimiser, 3)]
    return lines, torch.cat([p.detach().flatten() for p in net.parameters()]), most[0]


@pytest.mark.parametrize(("name", "parts"), PARTS)
def test_parts_of_a_batch_are_the_whole_batch(mixture, name, parts):
    """Advantages, groups and pairs are those of the whole batch, wherever its parts end, and so are a step's updates where it
    makes several: float64, to rounding."""
    lines, weights, most = accumulated(mixture, name, 1)
    found, mine, fewer = accumulated(mixture, name, parts)
    assert not torch.equal(weights, torch.cat([p.detach().flatten() for p in Drift(8).parameters()]))
    assert torch.allclose(mine, weights, rtol=1e-9, atol=1e-11)
    for a, b in zip(lines, found, strict=True):
        a.pop("critic_error", None)  # a root, of which a mean over parts is another number
        assert a == pytest.approx({name: b[name] for name in a}, rel=1e-8, abs=1e-9)
    assert most == 8 and fewer == 8 // parts


@pytest.mark.parametrize("name", ["ddpo", "dpo"])
def test_the_command_takes_parts_of_a_batch_that_is_compared(here, name):
    for count in ("1", "4"):
        words = ("--objective", name, "--accumulate", count, "--sample-every", "0", "--diversity", "euclid=0.5")
        assert train(here / count, *words, steps=2, batch=4) == 0
    one, four = (read_lines(here / count / "metrics.jsonl") for count in ("1", "4"))
    for a, b in zip(one, four, strict=True):
        for key in ("loss", "reward", "gradient_norm", "dissimilarity"):
            assert a[key] == pytest.approx(b[key], rel=2e-3, abs=1e-5)
        assert b["evaluations"] > a["evaluations"]  # what is made again is counted


# Text encoders


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    places = {"sd": write_small(root / "sd")} | {name: write(name, root / name) for name in ("sdxl", "sd3", "flux")}
    size = {"flux": {"height": 16, "width": 16, "max_sequence_length": 512}}
    return lambda name: (str(places[name]), tl.load(str(places[name]), **size.get(name, {})))


class Red:
    name, differentiable = "red", True

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def plain_pictures(folder, name, latents, lora):
    """Of diffusers' own pipeline."""
    pipe = DiffusionPipeline.from_pretrained(folder, **({"safety_checker": None} if name == "sd" else {}))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(lora))
    more = {"eta": 0.0} if name in ("sd", "sdxl") else {}
    if name == "flux":
        latents = latents if latents.ndim == 3 else FluxPipeline._pack_latents(latents, *latents.shape)
        more = {"height": 16, "width": 16, "max_sequence_length": 512}
    steps = {"num_inference_steps": 4, "guidance_scale": 3.0}
    return pipe(["a fox"], latents=latents, output_type="pt", **steps, **more).images


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_a_text_encoders_lora_is_trained_saved_and_drawn_with_by_plain_diffusers(tiny, tmp_path, name):
    """Its B moves, the frozen model is the model without it, the file is diffusers' own."""
    folder, model = tiny(name)
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    drawing = {"steps": 4, "cfg": 3.0, "eta": 0.0, "latents": latents}
    base = tl.generate(model, ["a fox"], **drawing).images
    options = {"steps": 2, "cfg": 3.0, "batch_size": 2, "rank": 2, "lr": 0.05, "train_text_encoder": True}
    run = make_trainer(model, ["a fox", "a cat"], Red(), draft_k(2), train_steps=2, ema=0.5, **options)
    list(run.steps(2))
    state = run.lora()
    clips = {key.partition(".")[0] for key in state if key.startswith("text")}
    assert clips == {"sd": {"text_encoder"}, "flux": {"text_encoder"}}.get(name, {"text_encoder", "text_encoder_2"})
    for part in (*clips, "transformer" if name in ("sd3", "flux") else "unet"):
        assert max(v.abs().max() for k, v in state.items() if k.startswith(f"{part}.") and ".up." in k) > 0.01
    world, rows = run.batches(0, {}), torch.arange(2)
    x, t = world.noise(0), world.grid[0]
    with torch.no_grad():
        here, frozen = (network(x, t, rows).x0 for network in (world.denoise, world.base))
        fresh = tiny(name)[1].denoiser([w.prompt for w in world.who], 3.0)(x, t, rows).x0
    assert torch.allclose(frozen, fresh, atol=1e-5) and not torch.allclose(here, fresh, atol=1e-3)
    run.save_weights(tmp_path)
    after = tl.generate(model, ["a fox"], **drawing).images
    assert (after - plain_pictures(folder, name, latents, tmp_path)).abs().max() < 1e-5
    assert (after - base).abs().max() > 1e-3
    again = make_trainer(tiny(name)[1], ["a fox"], Red(), steps=2, train_text_encoder=True, start=read_lora(tmp_path))
    assert set(again.state.parameters) == set(run.state.parameters)


def test_the_gradient_of_a_text_encoders_lora_is_that_of_finite_differences(tiny):
    model = tiny("sd")[1]
    run = make_trainer(model.double(), "a fox", Red(), draft(), steps=2, batch_size=1, rank=2, train_text_encoder=True)
    p = next(p for k, p in run.state.parameters.items() if k.startswith("text_encoder.") and ".lora_B." in k)
    for one in run.state.parameters.values():
        one.data = one.data.double()
    for component in parts(model).values():
        component.double()

    def loss():
        world = replace(run.batches(0, {}), dtype=torch.float64, trained=list(run.state.parameters.values()))
        (found,) = run.objective(world)
        return found.value

    loss().backward()
    wanted = p.grad[0, 0].item()
    assert abs(wanted) > 1e-9
    values = []
    for step in (1e-4, -2e-4):
        with torch.no_grad():
            p[0, 0] += step
            values.append(loss().item())
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(wanted, rel=1e-4)


def test_the_command_trains_text_encoders_and_resumes_to_the_bit(here, monkeypatch, tiny, capsys):
    plain = ("--objective", "draft-k", "--sample-every", "0", "--train-text-encoder", "--checkpoint-every", "1")
    words = (*plain, "--model", tiny("sd")[0])
    assert train(here / "whole", *words, reward="r.py:interrupted") == 0
    monkeypatch.setenv("STOP_AT", "3")
    assert train(here / "parts", *words, reward="r.py:interrupted") == 130
    monkeypatch.setenv("STOP_AT", "0")
    assert train(here / "parts", *words, reward="r.py:interrupted") == 0
    assert numbers(here / "whole") == numbers(here / "parts")
    assert any(key.startswith("text_encoder.") for key in load_file(here / "whole" / "lora" / FILE))
