"""`tilting finetune --objective dpo --pairs FILE`: the loss by hand, what is learnt, resume bit for bit, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

import tilting as tl
from support.drift import Drift, make, moved
from tilting.cli import main
from tilting.config.finetune import resolve_finetune
from tilting.config.pairs import read_pairs
from tilting.errors import TiltingError
from tilting.objectives import dpo
from tilting.training.folder import read_lines

pytestmark = pytest.mark.usefixtures("undrawn")

TABLES = {
    "csv": lambda rows: "Caption,winner,loser\n" + "".join(f"{p},{a},{b}\n" for p, a, b in rows),
    "jsonl": lambda rows: "".join(json.dumps({"prompt": p, "chosen": a, "rejected": b}) + "\n" for p, a, b in rows),
}
ROWS = [("a fox", "good/0.png", "bad/0.png"), ("a cat", "good/1.png", "bad/1.png"), ("a fox", "good/1.png", "bad/0.png")]
SMALL = ("--steps", "4", "--batch-size", "4", "--rank", "4", "--sample-images", "1", "--checkpoint-every", "2", "--quiet")


@pytest.fixture(scope="module")
def pocket():
    return tl.load("pocket")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with pictures that are bright and dark, one of a size of its own, and a table of each kind."""
    monkeypatch.chdir(tmp_path)
    for folder, shades in (("good", (230, 200)), ("bad", (20, 50))):
        (tmp_path / folder).mkdir()
        for i, shade in enumerate(shades):
            Image.new("RGB", (64, 64 + 16 * i), (shade, shade, 255 - shade)).save(tmp_path / folder / f"{i}.png")
    for kind, text in TABLES.items():
        (tmp_path / f"pairs.{kind}").write_text(text(ROWS))
    return tmp_path


def train(out, *words, pairs="pairs.csv", steps=3):
    return main(["finetune", "--objective", "dpo", "--pairs", pairs, "--out", out, "--train-steps", str(steps), *SMALL, *words])


def test_the_loss_is_that_of_the_paper(mixture):
    """-log σ(-β/2 [(e_θ - e_base)(chosen) - (e_θ - e_base)(rejected)]) at the noise and time that a pair shares."""
    beta, seen = 3.0, {}
    given = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.3, 0.3], [2.0, -1.0]], dtype=torch.float64)
    world = make(mixture, moved(Drift()), images=4, prompts=2, given=lambda: given, value=pytest.fail)

    def watched(name):
        def denoise(x, t, rows):
            noise, clean, _ = found = getattr(world, name)(x, t, rows)
            seen[name] = x, t, rows, (t.alpha * noise - t.sigma * clean).tolist()
            return found

        return denoise

    (loss,) = dpo(beta=beta, timesteps=1)(replace(world, plain=watched("plain"), base_plain=watched("base_plain")))
    (x, t, rows, ours), theirs = seen["plain"], seen["base_plain"][3]
    assert sorted(rows.tolist()) == [0, 1, 2, 3] and world.kind == "v_prediction"
    noise = (x - t.alpha * given[rows]) / t.sigma
    target = (t.alpha * noise - t.sigma * given[rows]).tolist()
    gone = {int(i): k for k, i in enumerate(rows)}
    error = {
        i: sum((ours[k][d] - target[k][d]) ** 2 - (theirs[k][d] - target[k][d]) ** 2 for d in (0, 1)) / 2
        for i, k in gone.items()
    }
    for chosen, rejected in ((0, 1), (2, 3)):
        assert torch.allclose(noise[gone[chosen]], noise[gone[rejected]])
    assert not torch.allclose(noise[gone[0]], noise[gone[2]])
    by_hand = [math.log1p(math.exp(beta / 2 * (error[chosen] - error[chosen + 1]))) for chosen in (0, 2)]
    assert loss.value.item() == pytest.approx(sum(by_hand) / 2, rel=1e-9)
    assert "reward" not in loss.numbers and loss.numbers["tied"] == 0
    assert loss.numbers["accuracy"] == sum(error[chosen] < error[chosen + 1] for chosen in (0, 2)) / 2


def test_it_comes_to_prefer_what_was_chosen(here, pocket, monkeypatch):
    monkeypatch.setattr("tilting.training.run.load", lambda name, *more, **how: pocket)
    assert train("run", "--sample-every", "8", pairs="pairs.jsonl", steps=8) == 0
    rows = read_lines(here / "run" / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # of a LoRA that changes nothing yet
    assert sum(row["loss"] for row in rows[-3:]) / 3 < 0.6 and sum(row["accuracy"] for row in rows[-3:]) / 3 > 0.8
    assert {(row["images"], row["reward_calls"]) for row in rows} == {(0, 0)}
    assert "sample_reward" in rows[-1] and rows[-1]["sample_reward"] is None and "judge" in rows[-1]
    manifest = json.loads((here / "run" / "manifest.json").read_text())
    assert manifest["config"]["prompts"] == [p for p, _, _ in ROWS] and manifest["reward"] == []


def test_a_run_goes_on_to_the_same_bits_and_only_with_its_pictures(here, pocket, monkeypatch, capsys):
    monkeypatch.setattr("tilting.training.run.load", lambda name, *more, **how: pocket)
    from tilting.training import batches

    still = ("--sample-every", "0")
    assert train("whole", *still) == 0
    read, calls = batches.read_picture, []

    def stopped(*given):
        calls.append(given)
        if len(calls) == 9:  # the first picture of step 3: four a step
            raise KeyboardInterrupt
        return read(*given)

    monkeypatch.setattr(batches, "read_picture", stopped)
    assert train("parts", *still) != 0 and len(calls) == 9
    monkeypatch.setattr(batches, "read_picture", read)
    table = (here / "bad/0.png").read_bytes()
    Image.new("RGB", (64, 64), "red").save(here / "bad/0.png")
    assert train("parts", *still) == 2 and "other pairs" in capsys.readouterr().err
    (here / "bad/0.png").write_bytes(table)
    assert train("parts", *still) == 0
    for name in ("metrics.jsonl", "lora/pytorch_lora_weights.safetensors"):
        assert (here / "whole" / name).read_bytes() == (here / "parts" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pairs", "none.csv"), "no file 'none.csv' for --pairs"),
        (("--pairs", "good"), "which 'good' is not"),
        (("--pairs", "pairs.csv", "--objective", "ddpo"), "ddpo learns from a reward, not from --pairs: use --objective dpo"),
        (("--pairs", "pairs.csv", "--reward", "clip"), "leave --reward out"),
        (("a dog", "--pairs", "pairs.csv"), "leave other prompts out"),
        (("--pairs", "pairs.csv", "--set", "dpo.group_size=4"), "leave group_size at 2"),
        (("--pairs", "pairs.csv", "--reward-dropout", "0.5"), "leave them out"),
        (("--pairs", "pairs.csv", "--batch-size", "3"), "groups of 2"),
        ("Prompt,chosen\na fox,good/0.png\n", "no column rejected; there is: Prompt, chosen"),
        ("prompt,chosen,rejected\n", "holds no pairs"),
        ("prompt,chosen,rejected\n,good/0.png,bad/0.png\n", "row 1 of 'mine.csv' has no prompt"),
        ("prompt,chosen,rejected\na fox,good/0.png,bad/7.png\n", "the picture 'bad/7.png', which is not there"),
        ("prompt,chosen,rejected\na fox,good/0.png,good/0.png\n", "both chosen and rejected"),
        ("prompt,chosen,rejected\na fox,good/0.png,../x.png\n", "row 1 of 'mine.csv'"),
        ("prompt,chosen,rejected\na fox,good/0.png,broken.png\n", "broken.png' of --pairs cannot be read as a picture"),
    ],
)
def test_refusals_before_a_weight_is_read(words, said, here, monkeypatch, capsys):
    monkeypatch.setattr("tilting.training.run.load", lambda *a, **k: pytest.fail("the model was read"))
    (here / "broken.png").write_bytes(b"\x89PNG")
    if isinstance(words, str):
        (here / "mine.csv").write_text(words)
        words = ("--pairs", "mine.csv")
    assert (
        main(["finetune", *(() if "--objective" in words else ("--objective", "dpo")), *words, "--out", "run", "--quiet"]) == 2
    )
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (here / "run").exists()


def test_tables_read_alike_and_a_config_resolves_to_itself(here):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    names = ("prompt", "chosen", "rejected")
    parquet.write_table(pa.table(dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))), here / "pairs.parquet")
    assert read_pairs("pairs.csv") == read_pairs("pairs.jsonl") == read_pairs("pairs.parquet")
    config = resolve_finetune({"objective": "dpo", "pairs": "pairs.csv", "out": "run"})
    assert config.reward == () and config.prompts == ("a fox", "a cat", "a fox")
    assert resolve_finetune(config.mapping()) == config
    from tilting.training.doctor import doctor

    with pytest.raises(TiltingError, match="doctor examines"):
        doctor(config)
