"""`tilting finetune` on pocket, in process and killed: what it writes, resume bit for bit, refusals, skipped steps."""

from __future__ import annotations

import inspect
import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch

import tilting as tl
from support.finetuning import REWARDS, SMALL, Bright, bright, numbers, train
from support.processes import begun
from tilting.cli import main
from tilting.config.finetune import resolve_finetune
from tilting.config.objectives import defaults
from tilting.errors import TiltingError
from tilting.generation.generate import Drawn, draw, plan
from tilting.models.lora_weights import read_lora, save_lora
from tilting.objectives import OBJECTIVES, ddpo, draft, draft_k
from tilting.runs.owner import TRAINING, kind_of
from tilting.training.batches import batch_identities
from tilting.training.folder import read_lines
from tilting.training.run import describe, stopped
from tilting.training.trainer import make_trainer

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def pocket():
    return tl.load("pocket")


@pytest.fixture
def here(tmp_path, monkeypatch, pocket):
    """A folder with rewards in it; pocket is loaded once."""
    (tmp_path / "r.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tilting.training.run.load", lambda name, *more, **how: pocket)
    return tmp_path


def test_a_run_writes_what_it_did(here, pocket):
    assert train("run", "--sample-every", "2", "--checkpoint-every", "2") == 0
    rows = read_lines(here / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["evaluations"] for row in rows] == [12, 24, 36]  # 2 images x (3 steps + 2 copies + 1 made again)
    assert [row["reward_calls"] for row in rows] == [6, 12, 18]
    assert [row["images"] for row in rows] == [2, 4, 6]
    assert not any("second" in key for row in rows for key in row)
    assert [p.name for p in sorted((here / "run" / "samples").iterdir())] == ["000000.png", "000002.png", "000003.png"]
    manifest = json.loads((here / "run" / "manifest.json").read_text())
    assert kind_of(here / "run") is TRAINING and manifest["summary"]["finished"] is True
    assert manifest["summary"]["samples"][1]["judge"] == rows[1]["judge"]
    # the first step's images are the base model's: drawn again by the sampler of `generate`
    who = batch_identities(["a fox", "a cat"], 0, 0, 2, 1)
    for p in pocket.unet.parameters():
        p.requires_grad_(False)
    pocket.unet.delete_adapters("tilting")
    drawn = [e for e in draw(pocket, plan(pocket, who, steps=3, eta=0.0)) if isinstance(e, Drawn)]
    assert rows[0]["reward"] == pytest.approx(bright(drawn[0].images, []).mean().item(), abs=1e-6)
    # and what was trained is in the file: step 3's images are those of the weights of checkpoint 2
    state = read_lora("run")
    assert max(v.abs().max().item() for k, v in state.items() if ".lora.up." in k) > 1e-4
    assert (
        main(
            [
                "finetune",
                "a fox",
                "a cat",
                "--out",
                "run",
                "--reward",
                "r.py:bright",
                "--train-steps",
                "4",
                "--batch-size",
                "2",
                *SMALL,
            ]
        )
        == 2
    )


def test_the_objectives_known_without_torch_are_those_there_are():
    for name, factory in OBJECTIVES.items():
        assert defaults(name) == {p.name: p.default for p in inspect.signature(factory).parameters.values()}
        resolved = resolve_finetune({"prompts": ["a fox"], "objective": name})
        assert resolved.made_objective == factory()
        assert resolve_finetune(resolved.mapping()) == resolved
        assert resolved.batch_size % resolved.made_objective.group_size == 0


def test_options_of_no_use_are_told():
    given = {
        "prompts": ["a fox"],
        "reward": ["clip"],
        "cfg": 1,
        "negative-prompt": "blurry",
        "sample-every": 0,
        "judge": "jpeg",
    }
    assert resolve_finetune(given).unused == ("negative-prompt", "judge")
    assert resolve_finetune({**given, "learn": "guidance", "rank": 4, "sample-every": 5}).unused == ("rank",)
    assert resolve_finetune({**given, "cfg": 2, "sample-every": 5}).unused == ()


BAD = [
    ((), "no prompt"),
    (("a fox", "--objective", "drft"), "did you mean 'draft'"),
    (("a fox", "--set", "draft-lv.copys=1"), "did you mean 'draft-lv.copies'"),
    (("a fox", "--set", "drafft.kl=1"), "did you mean 'draft'"),
    (("a fox", "--set", "draft-lv.copies=-1"), "at least 0"),
    (("a fox", "--set", "draft-lv.copies=1.5"), "whole number"),
    (("a fox", "--objective", "refl", "--set", "refl.shape=relo"), "did you mean 'relu'"),
    (("a fox", "--objective", "draft", "--set", "draft.kl=0.1", "--eta", "0"), "draft.kl needs eta above 0"),
    (("a fox", "--objective", "ddpo", "--eta", "0"), "ddpo needs eta above 0"),
    (("a fox", "--objective", "grpo", "--batch-size", "6"), "use 8"),
    (("a fox", "--objective", "draft", "--batch-size", "3", "--accumulate", "2"), "2 parts by --accumulate"),
    (("a fox", "--objective", "grpo", "--batch-size", "4", "--accumulate", "3"), "4 images of a prompt for grpo and 3 parts"),
    (("a fox", "--objective", "ddpo", "--set", "ddpo.advantage=group"), "use grpo"),
    (
        ("a fox", "--objective", "ddpo", "--set", "ddpo.ratio=false", "--set", "ddpo.epochs=2"),
        "ddpo.epochs and ddpo.minibatches at 1",
    ),
    (("a fox", "--objective", "alignprop", "--set", "alignprop.kl=0.1", "--steps", "1"), "alignprop.kl needs at least 2 steps"),
    (("a fox", "--objective", "draft", "--set", "draft.kl=0.1", "--steps", "1"), "draft.kl needs at least 2 steps"),
    (("a fox", "--objective", "rwr", "--set", "rwr.source=pretraind"), "did you mean 'pretrained'"),
    (("a fox", "--init-lora", "DIR", "--target-modules", "attn1"), "leave --target-modules out"),
    (("a fox", "--reward", "jpeg"), "use --objective ddpo"),
    (("a fox", "--target-modules", "attn3"), "did you mean 'attn"),
    (("a fox", "--rank", "0"), "rank must be at least 1"),
    (("a fox", "--lr", "0"), "lr must be above 0"),
    (("a fox", "--schedule", "root"), "schedule"),
    (("a fox", "--tracker", "wandbb"), "did you mean 'wandb'"),
    (("a fox", "--early-stop", "2", "--sample-every", "0"), "sample-every"),
    (("a fox", "--judge", "clip"), "reward itself"),
    (("a fox", "--reward", "clip=2", "--judge", "clip"), "reward itself"),
    (("a fox", "--judge", "diversity"), "a judge is of each picture by itself"),
    (("a fox", "--learn", "lora,gidance"), "did you mean 'guidance'"),
    (("a fox", "--diversity", "euclit=1"), "did you mean 'euclid'"),
    (("a fox", "--diversity", "clip", "--batch-size", "1"), "at least 2 images at once"),
    (("a fox", "--reward-dropout", "1"), "below 1"),
    (("a fox", "--train-stpes", "3"), "did you mean '--train-steps'"),
    (("a fox", "--lora", "DIR"), "did you mean '--init-lora'"),
    (("a fox", "--lrs", "1"), "did you mean '--lr'"),
    (("a fox", "--size", "2"), "did you mean '--batch-size'"),
    (("a fox",), "--out"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(w)[:60] or "nothing" for w, _ in BAD])
def test_a_wrong_word_is_refused_in_a_sentence(words, said, capsys, monkeypatch):
    monkeypatch.setattr("tilting.training.run.load", None)
    assert main(["finetune", *words, *(("--out", "OUT") if len(words) != 1 else ())]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bits(here, monkeypatch):
    """Stopped in the middle of the steps 1, 3 and 4 of 4 (three rewards a step), with checkpoints at 2 and 4."""
    words = ("--checkpoint-every", "2", "--sample-every", "3")
    monkeypatch.setenv("STOP_AT", "0")
    assert train("whole", *words, reward="r.py:interrupted", steps=4) == 0
    done = numbers(here / "whole")
    # rewards are asked for at the look before training (1), 3 in each step, and at the looks after 3 and 4
    for nth in (3, 9, 12):
        out = here / f"cut{nth}"
        monkeypatch.setenv("STOP_AT", str(nth))
        assert train(out, *words, reward="r.py:interrupted", steps=4) == 130
        assert len(read_lines(out / "metrics.jsonl")) < 4
        monkeypatch.setenv("STOP_AT", "0")
        (out / "metrics.jsonl").open("a").write('{"step": 4, "los')  # and a line that a kill has torn
        assert train(out, *words, reward="r.py:interrupted", steps=4) == 0
        assert numbers(out) == done


@pytest.fixture
def ctrl_c():
    """Ctrl-C as at a terminal: a shell's background job, as tests may be, begins with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_the_step_that_has_begun_and_a_second_one_leaves_at_once(here, monkeypatch, capfd, ctrl_c):
    words = ("--checkpoint-every", "50", "--sample-every", "0")
    for name, value in (("STOP_AT", "0"), ("STOP_BY", "ctrl-c")):
        monkeypatch.setenv(name, value)
    assert train("whole", *words, reward="r.py:interrupted", steps=4) == 0
    monkeypatch.setenv("STOP_AT", "5")  # in the second step, of three rewards
    assert train("cut", *words, reward="r.py:interrupted", steps=4) == 130
    assert "this step is finished and saved" in capfd.readouterr().err
    assert [row["step"] for row in read_lines(here / "cut" / "metrics.jsonl")] == [1, 2]
    assert json.loads((here / "cut" / "manifest.json").read_text())["summary"]["steps"] == 2
    monkeypatch.setenv("STOP_AT", "0")
    assert train("cut", *words, reward="r.py:interrupted", steps=4) == 0
    assert numbers(here / "cut") == numbers(here / "whole")
    monkeypatch.setenv("STOP_AT", "5")
    monkeypatch.setenv("STOP_BY", "ctrl-c twice")
    assert train("left", *words, reward="r.py:interrupted", steps=4) == 130
    assert not (here / "left" / "checkpoints").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(here):
    words = ["finetune", "a fox", "--reward", "r.py:interrupted", "--train-steps", "3", "--batch-size", "1", *SMALL]
    words += ["--checkpoint-every", "1", "--sample-every", "0", "--out"]
    for out, stops in (("cut", ["5", "0"]), ("whole", ["0"])):
        for stop in stops:
            process = begun(here, *words, out, STOP_AT=stop, STOP_BY="kill")
            assert process.wait() == (-signal.SIGKILL if stop != "0" else 0), process.said()
    assert numbers(here / "cut") == numbers(here / "whole")


def test_a_finished_run_does_nothing_and_another_one_is_refused(here, capsys, monkeypatch):
    assert train("run", "--sample-every", "0", steps=1) == 0
    before = {p: p.stat().st_mtime_ns for p in (here / "run").rglob("*")}
    monkeypatch.setattr("tilting.training.run.load", None)
    assert train("run", "--sample-every", "0", steps=1) == 0
    assert {p: p.stat().st_mtime_ns for p in (here / "run").rglob("*")} == before
    for words, said in ((("--lr", "1e-3"), "another lr"), (("--set", "draft-lv.copies=1"), "draft-lv.copies")):
        capsys.readouterr()
        assert train("run", "--sample-every", "0", *words, steps=1) == 2
        assert said in capsys.readouterr().err
    assert train("run", "--sample-every", "0", "--schedule", "linear", steps=1) == 2
    capsys.readouterr()
    manifest = here / "run" / "manifest.json"
    older = json.loads(manifest.read_text())
    del older["config"]["set"]["draft-lv.eps_kl"]  # of a version without the setting, which is unset here
    manifest.write_text(json.dumps(older))
    assert train("run", "--sample-every", "0", steps=1) == 0
    capsys.readouterr()
    assert train("run", "--sample-every", "0", "--set", "draft-lv.copies=1", steps=1) == 2
    assert "draft-lv.copies" in capsys.readouterr().err
    assert train("run", "--sample-every", "0", "--set", "draft-lv.eps_kl=1", steps=1) == 2
    assert "draft-lv.eps_kl" in capsys.readouterr().err
    (here / "r.py").write_text(REWARDS.replace("def dark", "\n# a comment is no code\ndef  dark"))
    assert train("run", "--sample-every", "0", steps=1) == 0
    (here / "r.py").write_text(REWARDS.replace("-images", "-2 * images"))
    capsys.readouterr()
    assert train("run", "--sample-every", "0", steps=1) == 2
    assert "reward had other weights or code" in capsys.readouterr().err


def test_a_finished_run_goes_on_where_it_is_wanted_longer(here, capsys):
    """And is the run that was as long from the beginning; where the rate depends on the end it is not, and that is refused."""
    calls = []
    for steps in (1, 2, 2):
        assert train("longer", "--sample-every", "0", "--json", steps=steps) == 0
        calls.append(json.loads(capsys.readouterr().out)["call"])
    assert [(call["already"], call["evaluations"]) for call in calls] == [(0, 12), (1, 12), (2, 0)] and calls[2]["seconds"] == 0
    told = describe({**json.loads((here / "longer" / "manifest.json").read_text()), "call": calls[1]})
    assert "2 training steps in longer (1 was already there)" in told
    assert f"12 evaluations and {calls[1]['seconds']:.1f} s now (24 evaluations and " in told
    assert train("whole", "--sample-every", "0", steps=2) == 0
    assert numbers(here / "longer") == numbers(here / "whole")
    capsys.readouterr()
    assert train("longer", "--sample-every", "0", steps=1) == 2
    assert "other train-steps (2 there, 1 now): choose another --out" in capsys.readouterr().err
    falling = ("falling", "--sample-every", "0", "--schedule", "cosine")
    assert train(*falling, steps=1) == 0 and train(*falling, steps=2) == 2
    assert "--init-lora" in capsys.readouterr().err


def test_what_there_is_to_look_at(here, undrawn):
    """The page shows the first and the last look, each picture beside its own; the curve is there without looks, too."""
    undrawn.undo()
    assert train("run", "--sample-every", "1", steps=2) == 0
    page = (here / "run" / "finetune.html").read_text()
    assert (
        page.count("data:image/webp") == 6 and "2 training steps by draft-lv" in page
    )  # two prompts, before also behind after
    assert all(f">{word}</" in page for word in ("before", "after", "reward")) and "KL to the model" not in page
    look = [json.loads((here / "run" / name / "look.json").read_text()) for name in ("before", "after")]
    rows = json.loads((here / "run" / "manifest.json").read_text())["summary"]["samples"]
    for one, row in zip(look, (rows[0], rows[-1]), strict=True):
        assert one["step"] == row["step"]
        assert sum(record["judge"] for record in one["images"]) / 2 == pytest.approx(row["judge"])
    assert all((here / "run" / name).stat().st_size > 5000 for name in ("before-after.png", "curve.png"))
    (here / "run" / "finetune.html").unlink()
    (here / "run" / "curve.png").unlink()  # a kill came before them
    assert train("run", "--sample-every", "1", steps=2) == 0
    assert (here / "run" / "finetune.html").read_text() == page


def test_a_run_that_failed_at_first_blocks_nothing(here, capsys, pocket, monkeypatch):
    monkeypatch.setattr("tilting.generation.run.load", lambda name, *more, **how: pocket)
    words = ("--sample-every", "0", "--objective", "ddpo")
    assert train("run", *words, reward="r.py:raises", steps=1) == 2
    assert train("run", *words, "--lr", "1e-3", reward="r.py:dark", steps=1) == 0
    drawn = ["generate", "a fox", "--steps", "2", "--out", "drawn", "--quiet", "--reward"]
    assert main([*drawn, "r.py:raises"]) == 2
    assert (here / "drawn" / "manifest.json").exists()
    assert main([*drawn, "r.py:dark"]) == 0
    assert json.loads((here / "drawn" / "manifest.json").read_text())["config"]["reward"] == ["r.py:dark"]
    assert main([*drawn, "r.py:bright"]) == 2  # there are pictures now


def test_a_broken_reward_skips_the_step_and_is_counted(here):
    assert train("run", "--sample-every", "0", "--objective", "draft-k", reward="r.py:broken", steps=3) == 0
    rows = read_lines(here / "run" / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [0, 1, 1]
    assert rows[1]["loss"] is None and rows[1]["reward"] is None
    assert "nan" in rows[1]["why"] and "broken" in rows[1]["why"]
    assert rows[2]["images"] == 6 and rows[2]["loss"] is not None


def test_ten_broken_steps_in_a_row_stop_with_a_sentence_and_the_last_good_state(here, capsys):
    (here / "r.py").write_text(REWARDS.replace('if CALLS["n"] == 2', 'if CALLS["n"] >= 2'))
    words = ("--sample-every", "0", "--objective", "draft-k", "--checkpoint-every", "50")
    assert train("run", *words, reward="r.py:broken", steps=40, batch=1) == 2
    err = capsys.readouterr().err
    assert "10 steps in a row" in err and err.count("\n") == 1
    rows = read_lines(here / "run" / "metrics.jsonl")
    assert len(rows) == 11 and rows[-1]["skipped"] == 10
    assert train("one", *words, reward="r.py:bright", steps=1, batch=1) == 0
    good, kept = read_lora("one"), read_lora("run")
    assert all(torch.equal(good[key], kept[key]) for key in good)
    assert json.loads((here / "run" / "manifest.json").read_text())["summary"]["finished"] is False


def test_yaml_a_lora_to_go_on_from_and_trackers(here, capsys):
    pytest.importorskip("tensorboard")
    assert train("first", "--sample-every", "0", steps=1) == 0
    (here / "c.yaml").write_text(
        "prompts: [a fox]\nreward: r.py:bright\ntrain-steps: 1\nsteps: 2\nbatch_size: 1\nsample-every: 0\n"
        "init-lora: first\nobjective: draft\ndraft.kl: 0.5\nseed: 7\n"
    )
    capsys.readouterr()
    assert main(["finetune", "--config", "c.yaml", "--print-config", "--lr", "0.001"]) == 0
    shown = capsys.readouterr().out
    assert "lr: 0.001" in shown and "draft.kl: 0.5" in shown and "eta: 1.0" in shown and "rank: null" in shown
    assert "target-modules: null" in shown  # those of the first LoRA, whatever they are
    (here / "d.yaml").write_text(shown)
    assert main(["finetune", "--config", "d.yaml", "--out", "next", "--quiet"]) == 0
    row = read_lines(here / "next" / "metrics.jsonl")[0]
    assert row["kl"] > 0  # the base model is the one without the first LoRA
    before, after = read_lora("first"), read_lora("next")
    assert set(before) == set(after)
    assert all(0 < (after[key] - before[key]).abs().max() < 5e-3 for key in before)
    manifest = json.loads((here / "next" / "manifest.json").read_text())
    assert len(manifest["config"]["init-lora-sha256"]) == 16
    assert [p.name[:6] for p in (here / "next" / "tensorboard").iterdir()] == ["events"]
    shutil.rmtree(here / "first" / "checkpoints")  # which are not what was begun from
    assert main(["finetune", "--config", "d.yaml", "--out", "next", "--quiet"]) == 0
    assert main(["finetune", "--config", "d.yaml", "--out", "no", "--rank", "4"]) == 2
    save_lora({key: 2 * value for key, value in before.items()}, here / "first" / "lora")
    capsys.readouterr()
    assert main(["finetune", "--config", "d.yaml", "--out", "next", "--quiet"]) == 2
    assert "began at a LoRA of other weights" in capsys.readouterr().err
    (here / "c.yaml").write_text("trainsteps: 3\n")
    assert main(["finetune", "--config", "c.yaml"]) == 2
    assert "did you mean 'train-steps'" in capsys.readouterr().err


def test_ddpo_takes_a_black_box(here):
    assert train("run", "--sample-every", "0", "--objective", "ddpo", reward="jpeg", steps=2) == 0
    rows = read_lines(here / "run" / "metrics.jsonl")
    assert [row["ratio_far"] for row in rows] == [0.0, 0.0]
    assert rows[0]["gradient_norm"] > 0
    memory = json.loads(sorted((here / "run" / "checkpoints").glob("*/state.json"))[-1].read_text())["memory"]
    assert sum(map(len, memory["rewards"].values())) == 4


def test_early_stopping_keeps_the_best(here):
    """The judge wants the opposite of the reward: the base model is the best, and two samplings later it is over."""
    words = ("--sample-every", "1", "--early-stop", "2", "--judge", "r.py:dark", "--objective", "draft-k", "--lr", "0.01")
    assert train("run", *words, steps=9) == 0
    summary = json.loads((here / "run" / "manifest.json").read_text())["summary"]
    judged = [row["judge"] for row in summary["samples"]]
    assert summary["stopped_early"] is True
    best = judged.index(max(judged))
    assert summary["steps"] == best + 2 < 9
    assert summary["best_step"] == best
    up = {k: v for k, v in read_lora(here / "run" / "best").items() if ".lora.up." in k}
    assert all((v == 0).all() for v in up.values()) == (best == 0)
    assert stopped([{"judge": j} for j in (1.0, 2.0, 1.5, 1.9)], 2)
    assert not stopped([{"judge": j} for j in (1.0, 2.0, 1.5, 2.1)], 2)
    assert not stopped([{"judge": j} for j in (1.0, 0.5, 0.2)], None)


def test_early_stopping_without_a_judgement_is_refused_and_nothing_is_written(here, capsys):
    """Of a prompt that pocket's judge cannot read, and of a judge that fails."""
    (here / "r.py").write_text(REWARDS + "def none(images, prompts):\n    raise ValueError('no')\n")
    words = ("--sample-every", "1", "--early-stop", "2", "--objective", "draft-k")
    for more, prompts in (((), ("xyzzy plugh",)), (("--judge", "r.py:none"), ("a fox",))):
        assert train("run", *words, *more, prompts=prompts) == 2
        err = capsys.readouterr().err
        assert "early-stop has nothing to go by" in err and err.count("\n") == 1
        assert not (here / "run").exists()
    assert train("run", *words, steps=1) == 0  # the folder is as good as new


def test_prompts_are_drawn_without_replacement_and_groups_stand_together():
    prompts = [f"p{i}" for i in range(6)]
    seen = [batch_identities(prompts, 3, step, 8, 2) for step in range(40)]
    for who in seen:
        words = [w.prompt for w in who]
        assert words[::2] == words[1::2]
        assert len(set(words)) == 4
    assert len({(w.prompt, w.index) for who in seen for w in who}) == 40 * 8
    assert all(w.index < 0 for who in seen for w in who)
    share = sum(w.prompt == "p0" for who in seen for w in who) / (40 * 8)
    assert abs(share - 1 / 6) < 0.05
    assert seen[0] != batch_identities(prompts, 4, 0, 8, 2)
    assert {w.prompt for w in batch_identities(prompts, 3, 0, 24, 2)} == set(prompts)  # more groups than prompts


def test_accumulated_parts_are_the_whole_batch(pocket):
    words, options = ["a fox", "a cat"], {"steps": 2, "batch_size": 2, "rank": 2}
    objective = draft_k(1, kl=0.0, eps_kl=0.1, dropout=0.3)
    whole = tl.finetune(pocket, words, Bright(), objective, train_steps=2, **options)
    parts = tl.finetune(pocket, words, Bright(), objective, train_steps=2, accumulate=2, **options)
    for a, b in zip(whole.history, parts.history, strict=True):
        for key in ("loss", "gradient_norm", "reward"):
            assert a[key] == pytest.approx(b[key], rel=1e-4)


def gradients(run, world):
    for p in run.state.parameters.values():
        p.grad = None
    for loss in run.objective(world):
        loss.value.backward()
    return torch.cat([p.grad.flatten() for p in run.state.parameters.values()])


def test_a_fit_of_samples_is_of_the_networks_own_output(pocket):
    assert (
        make_trainer(pocket, ["a fox"], Bright(), steps=2, rank=2).batches(0, {}).kind == pocket.schedule.kind == "v_prediction"
    )


def test_the_base_model_stays_the_base_model_when_steps_are_made_again(pocket):
    """KL to a base that is the same network with its LoRA off: checkpointed steps give the gradient that held ones give, which
    is that of a separate copy of the base network."""
    import copy

    alone = copy.deepcopy(pocket.unet)
    for name in list(getattr(alone, "peft_config", {})):
        alone.delete_adapters(name)
    run = make_trainer(pocket, ["a fox"], Bright(), draft(kl=0.5), steps=3, batch_size=1, rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in run.state.parameters.items():
            if "lora_B" in name:
                p.copy_(0.05 * torch.randn(p.shape, generator=generator))
    world = run.batches(0, {})
    again, held = (gradients(run, replace(world, checkpointed=c)) for c in (True, False))
    assert torch.allclose(again, held, rtol=1e-3, atol=1e-6 * held.abs().max().item())

    guided = pocket.denoiser(["a fox"], run.batches.config.cfg)

    def base(x, t, rows):
        mine, pocket.pipe.unet = pocket.pipe.unet, alone
        try:
            return guided(x, t, torch.zeros_like(rows))
        finally:
            pocket.pipe.unet = mine

    apart = gradients(run, replace(world, base=base, checkpointed=False))
    assert torch.allclose(again, apart, rtol=1e-3, atol=1e-6 * held.abs().max().item())
    trained = gradients(run, replace(world, base=world.denoise, checkpointed=False))
    assert not torch.allclose(trained, held, rtol=0.1, atol=0.01 * held.abs().max().item())


def test_python_refuses_what_the_command_line_refuses(pocket):
    class Box(Bright):
        differentiable = False

    with pytest.raises(TiltingError, match="black-box"):
        tl.finetune(pocket, "a fox", Box(), train_steps=1)
    with pytest.raises(TiltingError, match="does not divide"):
        tl.finetune(pocket, "a fox", Bright(), OBJECTIVES["grpo"](), train_steps=1, batch_size=6)
    for name in ("draft", "draft-k", "alignprop"):
        with pytest.raises(TiltingError, match=f"{name}.kl needs at least 2 steps"):
            tl.finetune(pocket, "a fox", Bright(), OBJECTIVES[name](kl=0.1), train_steps=1, batch_size=1, steps=1, rank=2)
    with pytest.raises(TiltingError, match="prompt 1 of 1 is blank"):
        tl.finetune(pocket, " ", Bright(), ddpo(), train_steps=1)
