"""images.jsonl: a group costs the same however many were before it, and what a power cut leaves of it is gone on from."""

from __future__ import annotations

import json
import sys

import pytest

from support.commands import manifest, refused
from tilting.cli import main
from tilting.config.generate import GenerateConfig
from tilting.errors import TiltingError
from tilting.generation.folder import Folder
from tilting.generation.generate import Counts, Drawn
from tilting.lazy import torch
from tilting.rng import Identity
from tilting.runs import files

MANY = 20_000
WORDS = "generate a-fox --images 4 --batch-size 1 --steps 2 --reward jpeg --quiet --out run".split()  # noqa: SIM905


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def drawn(index):
    image = torch.full((1, 3, 4, 4), 0.5)
    return Drawn((Identity(0, "a fox", index),), image, [float(index)], {"jpeg": [float(index)]}, Counts(2, 1, 1, 0.001))


def test_of_20000_groups_each_costs_the_same(place):
    """In calls of Python and in bytes that are written; seconds would be this machine's."""
    config = GenerateConfig.resolve(
        {"prompts": ["a fox"], "images": MANY, "batch-size": 1, "reward": ["jpeg"], "out": str(place)}
    )
    folder = Folder(config)
    folder.begin()

    def cost(index):
        calls, written = 0, sum(p.stat().st_size for p in place.rglob("*") if p.is_file() and p.suffix != ".png")

        def count(frame, event, arg):
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            folder.add(drawn(index), [index], None)
        finally:
            sys.setprofile(None)
        return calls, sum(p.stat().st_size for p in place.rglob("*") if p.is_file() and p.suffix != ".png") - written

    cost(0)
    early = cost(1)
    record = json.loads((place / files.IMAGES).read_text().splitlines()[0])
    for index in range(2, MANY - 1):  # their pictures are not drawn here
        folder.records[index] = {**record, "index": index}
    late = cost(MANY - 1)
    assert late[0] <= early[0] + 20 and late[1] <= early[1] + 40, (early, late)
    assert len((place / files.IMAGES).read_text().splitlines()) == 3


def test_the_manifest_holds_the_summary_and_each_line_an_image(place):
    assert main(WORDS) == 0
    told = json.loads((place / "manifest.json").read_text())
    lines = [json.loads(line) for line in (place / "images.jsonl").read_text().splitlines()]
    assert told["images"] == "images.jsonl" and told["summary"]["images"] == 4
    assert [line["file"] for line in lines] == [f"images/0000{i}.png" for i in range(4)]
    spent = [line["spent"]["evaluations"] for line in lines]
    assert spent[0] > 0 and spent == [spent[0] * (i + 1) for i in range(4)] and spent[-1] == told["summary"]["evaluations"]
    assert not any("spent" in record for record in manifest(place)["images"])


@pytest.mark.parametrize("cut", ["torn", "middle", "no lines", "no summary", "a picture"])
def test_what_a_power_cut_leaves_is_gone_on_from(cut, place, capsys):
    assert main(WORDS) == 0
    whole, lines = manifest(place), (place / "images.jsonl").read_text().splitlines(keepends=True)
    if cut == "torn":
        (place / "images.jsonl").write_text("".join(lines)[:-30])
    elif cut == "middle":
        (place / "images.jsonl").write_text(lines[0] + lines[1][:20] + "\n" + "\0" * 30 + lines[2] + lines[3])
    elif cut == "no lines":
        (place / "images.jsonl").unlink()
    elif cut == "no summary":
        stale = json.loads((place / "manifest.json").read_text())
        stale["summary"] |= {"images": 0, "reward_mean": None}
        (place / "manifest.json").write_text(json.dumps(stale))
        capsys.readouterr()
        assert "is unfinished" in refused(capsys, "evaluate", "run", "--out", "judged")
    else:
        (place / "images" / "00001.png").write_bytes(b"")
    before = {p.name: p.stat().st_mtime_ns for p in (place / "images").iterdir()}
    assert main(WORDS) == 0
    after = {p.name: p.stat().st_mtime_ns for p in (place / "images").iterdir()}
    redrawn = {"torn": [3], "middle": [1, 2], "no lines": range(4), "a picture": [1]}.get(cut, [])
    evaluated = {"middle": 6, "no lines": 8, "a picture": 5}.get(cut, 4)  # what was paid for is told, where it is known
    assert [name for name in sorted(after) if after[name] != before[name]] == [f"0000{i}.png" for i in redrawn]
    assert manifest(place)["images"] == whole["images"]
    assert manifest(place)["summary"]["reward_mean"] == whole["summary"]["reward_mean"]
    assert manifest(place)["summary"]["evaluations"] == whole["summary"]["evaluations"] // 4 * evaluated


def test_an_append_is_whole_or_nothing_and_follows_no_link(tmp_path):
    from tilting.disk import append

    append(tmp_path / "a", b"one\n")
    append(tmp_path / "a", b"two\n", sync=False)
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\n"
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(TiltingError, match="cannot write"):
        append(tmp_path / "b", b"three\n")
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("length", [10_001, 10_000_000])
def test_a_prompt_is_refused_by_its_length_first(length, tmp_path, capsys, no_model):
    (tmp_path / "p.txt").write_text("a " * (length // 2) + "fox")
    assert "characters, more than 10000" in refused(
        capsys, "generate", "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "o")
    )
