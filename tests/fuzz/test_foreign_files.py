"""Whatever a file of others holds, a reader of it gives a value or refuses it in one sentence: no traceback, nothing slow,
nothing written outside of --out.

Of each kind of file a good one is changed: a value in its json by any other, a piece of its bytes, its whole text. The seconds
of all kinds together are $FUZZ_SECONDS, 20 unless told; `make fuzz` has ten minutes.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import tilting.conditioning.fit_run  # noqa: F401  (imports are not to be counted as slow)
from support.finetuning import REWARDS
from tilting.cli import main
from tilting.conditioning.dataset import read_data
from tilting.conditioning.noisy import load_noisy
from tilting.config.condition_fit import FitConfig
from tilting.config.prompts import read_prompts
from tilting.errors import TiltingError
from tilting.evaluation.read_runs import read_run
from tilting.features.fitted import EmbeddingMlp, FittedClassifier, ResidualCnn, load_classifier, save_classifier
from tilting.features.schema import Schema
from tilting.models.control_spec import read_control
from tilting.models.families import defaults_of
from tilting.models.lora_weights import read_lora, save_lora
from tilting.models.sampler_inputs import read_inputs
from tilting.rewards.remote import Http
from tilting.runs.files import image_name, read_manifest
from tilting.runs.owner import kind_of
from tilting.training.checkpoint import Saved, read, write
from tilting.training.folder import read_lines

SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
FIRST = int(os.environ.get("FUZZ_SEED", "0")) or (0 if SECONDS <= 40 else date.today().toordinal())
"""Seed of the first examples: always the same in CI, another each day where there is time."""
SLOW = 10.0
"""Seconds of the processor beyond which an example is a hang."""

KEYS = st.sampled_from(
    ["file", "prompt", "labels", "classes", "images", "a=b", "../x", "\0", "", "x" * 500, "..", "manifest.json"]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(10**400), 1e400, float("nan"), 0, -1, 10**9]),
    st.floats(),
    st.text(max_size=8),
    KEYS,
    st.sampled_from(["\ud800", "/etc/passwd", "../../home", "a\nb", "1e999", "2020-13-45", "images/00000.png"]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """The way to each value in plain data."""
    found = [at]
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(inner, (*at, key))
    return found


@st.composite
def changed_json(draw: Any, good: Any) -> bytes:
    """Plain data with one to three values changed, gone or doubled, as JSON."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(places(value)))
        if not at:
            value = draw(VALUES) if draw(st.integers(0, 9)) == 0 else value
            continue
        inside = value
        for key in at[:-1]:
            inside = inside[key]
        how = draw(st.sampled_from(["other", "gone", "deep", "more"]))
        if how == "gone":
            del inside[at[-1]]
        elif how == "deep":
            deep: Any = []
            for _ in range(draw(st.sampled_from([3, 60]))):
                deep = [deep]
            inside[at[-1]] = deep
        elif how == "more" and isinstance(inside, dict):
            inside[draw(KEYS)] = draw(VALUES)
        else:
            inside[at[-1]] = draw(VALUES)
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def changed_bytes(draw: Any, good: bytes) -> bytes:
    """A file of which a piece is cut out, doubled, or is other bytes."""
    start = draw(st.integers(0, len(good)))
    end = draw(st.integers(start, min(len(good), start + 40)))
    middle = draw(
        st.sampled_from([b"", good[start:end] * 2, b"\0", b"\xff\xfe", b"[" * 5000, b'"', b",,,\n", b"-1", b"9" * 400])
    )
    return good[:start] + middle + (b"" if draw(st.integers(0, 4)) == 0 else good[end:])


def changes(good: bytes) -> st.SearchStrategy[bytes]:
    """Of a file's bytes, and of its json where it is some."""
    ways = [changed_bytes(good), st.binary(max_size=30), st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace"))]
    try:
        return st.one_of(changed_json(json.loads(good)), *ways)
    except ValueError:
        return st.one_of(ways)


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Good files of every kind."""
    place = tmp_path_factory.mktemp("fuzz")
    (place / "r.py").write_text(REWARDS)
    draw, rows = (
        np.random.default_rng(0),
        [{"file": f"{i}.png", "prompt": "a fox", "bright": "yes" if i % 2 else "no"} for i in range(12)],
    )
    for row in rows:
        Image.fromarray(draw.integers(0, 200, (8, 8, 3)).astype(np.uint8)).save(place / row["file"])
    (place / "l.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (place / "l.json").write_text(json.dumps(rows))
    (place / "l.csv").write_text("file,prompt,bright\n" + "\n".join(",".join(row.values()) for row in rows) + "\n")
    (place / "p.txt").write_text("a fox\nan owl\n")
    (place / "c.yaml").write_text("prompts: [a fox]\nmethod: codex\nreward: [jpeg]\nset: {codex.tau: 0.1}\nsteps: 2\nout: o\n")
    (place / "run" / "images").mkdir(parents=True)
    record = {"file": image_name(0), "prompt": "a fox", "index": 0, "seed": 0, "reward": None, "rewards": {}, "judge": None}
    Image.new("RGB", (8, 8)).save(place / "run" / image_name(0))
    (place / "run" / "images.jsonl").write_text(json.dumps({**record, "spent": {"evaluations": 2}}) + "\n")
    summary = {"images": 1, "evaluations": 2, "decodes": 1, "reward_calls": 0, "seconds": 0.1}
    config = {"prompts": ["a fox"], "images": 1, "method": "base"}
    manifest = {"config": config, "images": "images.jsonl", "summary": summary, "model": {"name": "pocket"}, "reward": []}
    (place / "run" / "manifest.json").write_text(json.dumps(manifest))
    torch.manual_seed(0)
    save_classifier(FittedClassifier(ResidualCnn(2, (4, 4, 4)), Schema("bright", classes=("no", "yes"))), place / "cnn")
    save_classifier(FittedClassifier(EmbeddingMlp(1), Schema("red", "gaussian", std=0.5)), place / "mlp")
    lora = {"unet.a.lora.down.weight": torch.ones(2, 4), "unet.a.lora.up.weight": torch.ones(4, 2)}
    save_lora(lora, place / "lora")
    save_lora(lora, place / "control" / "lora")
    save_file({"e": torch.ones(2)}, place / "control" / "embedding.safetensors")
    from tilting.models.control_spec import ControlInfo, description

    (place / "control" / "control.json").write_text(
        description(
            ControlInfo((Schema("bright", classes=("no", "yes")),), {"name": "pocket", "sha256": "0"}), place / "control"
        )
    )
    (place / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n')
    write(place / "checkpoints", Saved(1, {"a": torch.ones(2)}, {"0.m": torch.ones(2)}, {"n": 1}))
    (place / "model").mkdir()
    (place / "model" / "model_index.json").write_text(
        json.dumps(
            {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": [None, None]}
        )
    )
    (place / "answer.json").write_text('{"scores": [0.5, 1]}')
    return place


def fit_config(file: str) -> Callable[[Path], Any]:
    def look(place: Path) -> Any:
        config = FitConfig.resolve({"data": str(place / file), "out": str(place / "out"), "skip-bad": True})
        return read_data(config)

    return look


def answered(place: Path) -> Any:
    return Http("http://127.0.0.1:9/")._scores((place / "answer.json").read_bytes(), 2)


def configured(place: Path) -> Any:
    before = os.getcwd()
    os.chdir(place)
    try:
        code = main(["generate", "--config", "c.yaml", "--print-config"])
    finally:
        os.chdir(before)
    assert code in (0, 2)


KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "prompts txt": ("p.txt", lambda place: read_prompts(place / "p.txt")),
    "prompts jsonl": ("l.jsonl", lambda place: read_prompts(place / "l.jsonl")),
    "prompts json": ("l.json", lambda place: read_prompts(place / "l.json")),
    "prompts csv": ("l.csv", lambda place: read_prompts(place / "l.csv")),
    "labels jsonl": ("l.jsonl", fit_config("l.jsonl")),
    "labels json": ("l.json", fit_config("l.json")),
    "labels csv": ("l.csv", fit_config("l.csv")),
    "config": ("c.yaml", configured),
    "manifest": ("run/manifest.json", lambda place: (kind_of(place / "run"), read_manifest(place / "run"))),
    "records": ("run/images.jsonl", lambda place: read_run(str(place / "run"), "run")),
    "run": ("run/manifest.json", lambda place: read_run(str(place / "run"), "run")),
    "picture": (f"run/{image_name(0)}", lambda place: fit_config("l.jsonl")(place)),
    "classifier": ("cnn/classifier.json", lambda place: load_classifier(place / "cnn")),
    "regressor": ("mlp/classifier.json", lambda place: load_classifier(place / "mlp")),
    "classifier weights": ("cnn/classifier.safetensors", lambda place: load_classifier(place / "cnn")),
    "noisy classifier": ("cnn/classifier.json", lambda place: load_noisy(place / "cnn")),
    "control": ("control/control.json", lambda place: read_control(place / "control")),
    "LoRA": ("lora/pytorch_lora_weights.safetensors", lambda place: (read_lora(place / "lora"), read_inputs(place / "lora"))),
    "lines": ("metrics.jsonl", lambda place: read_lines(place / "metrics.jsonl")),
    "checkpoint": ("checkpoints/00000001/state.json", lambda place: read(place / "checkpoints")),
    "checkpoint weights": ("checkpoints/00000001/weights.safetensors", lambda place: read(place / "checkpoints")),
    "model": ("model/model_index.json", lambda place: defaults_of(str(place / "model"))),
    "http answer": ("answer.json", answered),
}


def trial(look: Callable[[Path], Any], place: Path) -> None:
    """A value, or a refusal of one line, soon. Raises AssertionError, or what escaped."""
    begun = time.process_time()  # not what other programs take
    try:
        look(place)
    except TiltingError as error:
        assert str(error).strip(), "says nothing"  # noqa: PT017
    assert time.process_time() - begun < SLOW


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file(kind, here, capfd):
    name, look = KINDS[kind]
    good, deadline = (here / name).read_bytes(), time.monotonic() + SECONDS / len(KINDS)
    before, tried = tree(here.parent), 0

    def change(data: bytes) -> None:
        nonlocal tried
        if tried < 10 or time.monotonic() < deadline:
            tried += 1
            (here / name).write_bytes(data)
            trial(look, here)

    few = settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    strategy = changes(good)
    try:
        while tried < 10 or time.monotonic() < deadline:  # hypothesis has no budget of seconds
            seed(FIRST + tried)(few(given(strategy)(change)))()
    finally:
        (here / name).write_bytes(good)
    trial(look, here)
    print(f"{kind}: {tried} files, from seed {FIRST}")
    assert tried > 3
    after = tree(here.parent)
    assert set(after) == set(before) and {p for p in after if after[p] != before[p]} <= {here / name, *(here / name).parents}
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("ill", ["4-d", "ranks", "none", "up alone", "NaN", "huge alpha"])
def test_tensors_of_a_lora_that_do_not_match(ill, here):
    """Refused when the file is read: nothing is attached."""
    shutil.copytree(here / "lora", here / "ill", dirs_exist_ok=True)
    file = here / "ill" / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    down, up = sorted(tensors, key=lambda key: "up" in key)
    if ill == "4-d":
        tensors[down] = tensors[down][:, :, None, None].contiguous()
    elif ill == "ranks":
        tensors[up] = torch.ones(4, 3)
    elif ill == "none":
        tensors = {"x": torch.ones(1)}
    elif ill == "up alone":
        del tensors[down]
    elif ill == "NaN":
        tensors[up][0, 0] = float("nan")
    else:
        tensors[down.replace("lora.down.weight", "alpha")] = torch.ones(3)
    save_file(tensors, file)
    with pytest.raises(TiltingError):
        read_lora(here / "ill")


@pytest.mark.parametrize("word", [None, 3, [], [0], [-1], [1.5], ["relu"], {"a": 1}, 1e400])
@pytest.mark.parametrize(
    ("network", "key"), [("mlp", key) for key in ("activation", "hidden", "dropout", "embedder", "name")] + [("cnn", "widths")]
)
def test_an_option_of_a_network_of_any_type(network, key, word, here, tmp_path):
    """A hidden of the wrong shape, a name that is no text: loaded or refused."""
    shutil.copytree(here / network, tmp_path / network)
    file = tmp_path / network / "classifier.json"
    config = json.loads(file.read_text())
    config["network"][key] = word
    file.write_text(json.dumps(config))
    trial(load_classifier, tmp_path / network)
