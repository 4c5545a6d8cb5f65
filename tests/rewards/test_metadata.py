"""What prompts files say beside the prompt reaches rewards that take it: on the command line and in Python."""

import json

import pytest
import torch
import yaml

import tilting as tl
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.rewards import combine, informed, user

MINE = """
SEEN = []

def score(images, prompts, metadata):
    SEEN.append((list(prompts), metadata))
    return [one.get("wanted", -1) for one in metadata]

def plain(images, prompts):
    return images.mean((1, 2, 3))
"""
PROMPTS = ["a fox", "an owl"]
METADATA = [{"wanted": 3, "tag": "one", "include": [{"class": "fox", "count": 1}]}, {"wanted": 7}]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    lines = [json.dumps({**more, "prompt": prompt}) for prompt, more in zip(PROMPTS, METADATA, strict=True)]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "asked.csv").write_text("prompt,wanted\na fox,3\nan owl,7\n")
    return tmp_path


def rewards_of(folder):
    """By prompt, of a run."""
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    return {row["prompt"]: next(iter(row["rewards"].values())) for row in rows}


def test_a_reward_is_told_and_others_stay(mine):
    score, plain = user("mine.py:score"), user("mine.py:plain")
    x = torch.rand(2, 3, 8, 8)
    assert score(x, PROMPTS).tolist() == [-1, -1]
    told = informed(score, PROMPTS, METADATA)
    assert told(x, PROMPTS[::-1]).tolist() == [7, 3] and told.name == score.name
    assert informed(plain, PROMPTS, METADATA) is plain and informed(None, PROMPTS, METADATA) is None
    assert informed(score, PROMPTS, ()) is score
    both = informed(combine([(score, 2.0), plain]), PROMPTS, METADATA)
    assert both.each(x, PROMPTS)["mine.py:score"].tolist() == [3, 7]
    with pytest.raises(TiltingError, match=r"'a fox' stands twice with other metadata, which 'mine.py:score' cannot tell"):
        informed(score, ["a fox", "a fox"], METADATA)
    assert informed(score, ["a fox", "a fox"], [METADATA[0]] * 2)(x, ["a fox"] * 2).tolist() == [3, 3]


@pytest.mark.parametrize("file", ["asked.jsonl", "asked.csv"])
def test_generate_and_evaluate_from_a_file(mine, folder, file):
    """Values are numbers in JSON and texts in CSV; a run that goes on knows them from its manifest."""
    (mine / "mine.py").write_text(MINE.replace('one.get("wanted", -1)', 'float(one.get("wanted", -1))'))
    own = ["generate", "--prompts", file, "--model", str(folder), "--steps", "2", "--method", "bon", "--particles", "2"]
    assert main([*own, "--reward", "mine.py:score", "--out", "run", "--quiet"]) == 0
    assert rewards_of(mine / "run") == {"a fox": 3, "an owl": 7}
    held = json.loads((mine / "run" / "manifest.json").read_text())["config"]["metadata"]
    assert [one["wanted"] for one in held] == ([3, 7] if file.endswith("l") else ["3", "7"])
    images = sorted((mine / "run" / "images").glob("*.png"))
    images[0].unlink()
    assert main([*own, "--reward", "mine.py:score", "--out", "run", "--quiet"]) == 0
    assert rewards_of(mine / "run") == {"a fox": 3, "an owl": 7}


@pytest.mark.parametrize("command", ["generate", "finetune"])
def test_a_run_without_metadata_does_not_go_on_with_some(mine, folder, command, capsys):
    (mine / "plain.csv").write_text("prompt\na fox\nan owl\n")
    (mine / "mine.py").write_text("def score(images, prompts, metadata):\n    return images.mean((1, 2, 3))\n")
    own = ["--model", str(folder), "--steps", "2", "--reward", "mine.py:score", "--out", "run", "--quiet"]
    own += {"generate": ["--only", "0:0"], "finetune": ["--objective", "ddpo", "--train-steps", "1", "--batch-size", "2"]}[
        command
    ]
    assert main([command, "--prompts", "plain.csv", *own]) == 0
    own = [word for word in own if word not in ("--only", "0:0")]
    assert main([command, "--prompts", "asked.jsonl", *own]) == 2
    assert "holds a" in (said := capsys.readouterr().err) and "metadata" in said
    assert main([command, "--prompts", "plain.csv", *own]) == 0


@pytest.mark.parametrize("asked", [["a dog"], ["--prompts", "other.jsonl"], ["a dog", "a cow"]])
def test_metadata_is_of_its_own_prompts(mine, asked, capsys):
    """What a YAML file says of its prompts is not said of others on the command line."""
    (mine / "other.jsonl").write_text('{"prompt": "a cat", "tag": "two"}\n')
    assert main(["generate", "--prompts", "asked.jsonl", "--print-config"]) == 0
    (mine / "c.yaml").write_text(capsys.readouterr().out)
    assert main(["generate", *asked, "--config", "c.yaml", "--print-config"]) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    assert told.get("metadata", []) == ([{"tag": "two"}] if "--prompts" in asked else [])
    assert main(["generate", "--config", "c.yaml", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["metadata"] == METADATA
    (mine / "both.yaml").write_text("prompts: other.jsonl\nmetadata: [{tag: one}]\n")
    assert main(["generate", "--config", "both.yaml", "--print-config"]) == 2
    assert "metadata is given both by itself and by the prompts" in capsys.readouterr().err


def test_evaluate_scores_pictures_with_the_metadata_of_their_run(mine, folder):
    """A base run that no reward saw is scored as its own prompts ask, and one drawn without metadata as the others do: else
    ocr would refuse them."""
    (mine / "asked.csv").write_text("prompt,text\na fox,fox\nan owl,owl\n")
    own = ["generate", "--prompts", "asked.csv", "--model", str(folder), "--steps", "2", "--quiet"]
    assert main([*own, "--out", "base"]) == main([*own, "--method", "bon", "--reward", "ocr", "--out", "run"]) == 0
    assert main(["generate", "a fox", "an owl", *own[3:], "--out", "plain"]) == 0
    assert main(["evaluate", "run", "base", "plain", "--out", "judged", "--quiet"]) == 0
    found = json.loads(next((mine / "judged").glob("*.json")).read_text())
    assert [run["rewards"]["ocr"]["mean"] for run in found["runs"]] == [0, 0, 0], found["notes"]
    assert any("The reward ocr of base, plain was computed from the pictures" in note for note in found["notes"])


def test_compare_and_finetune_from_a_file(mine, folder):
    own = ["--prompts", "asked.jsonl", "--model", str(folder), "--steps", "2", "--reward", "mine.py:score", "--quiet"]
    assert main(["compare", *own, "--methods", "base,bon", "--particles", "2", "--out", "compared"]) == 0
    for method in ("base", "bon"):
        assert rewards_of(mine / "compared" / "runs" / method) == {"a fox": 3, "an owl": 7}
    train = ["finetune", *own, "--objective", "ddpo", "--train-steps", "1", "--batch-size", "2", "--rank", "2"]
    assert main([*train, "--out", "tuned"]) == 0
    rows = [json.loads(line) for line in (mine / "tuned" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["reward"] in (3, 5, 7), rows


def test_prompts_with_metadata_in_python(mine, small):
    asked = [{"prompt": prompt, **more} for prompt, more in zip(PROMPTS, METADATA, strict=True)]

    def score(images, prompts, metadata):
        return torch.tensor([float(one["wanted"]) for one in metadata])

    out = tl.generate(small, asked, reward=score, method="bon", steps=2)
    assert [row["reward"] for row in out.manifest["images"]] == [3, 7]
    told = tl.compare(asked, "base", model=small, reward="mine.py:score", steps=2, out=mine / "loaded", progress=False)
    assert [entry["methods"]["base"]["reward"] for entry in told["images"]] == [3, 7]
    tuned = tl.finetune(small, asked, score, "ddpo", train_steps=1, steps=2, batch_size=2, rank=2)
    assert tuned.history[0]["reward"] in (3, 5, 7)
