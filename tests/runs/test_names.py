"""Names that data bring never lead out of a folder: each is a path inside it, or refused in a sentence."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.commands import refused
from tilting import disk
from tilting.disk import checked_name, inner_path, write_atomically
from tilting.errors import TiltingError
from tilting.models.control_spec import read_control
from tilting.runs.files import finished, image_name, whole

BAD = {
    "../../home": "a separator",
    "/tmp/home": "an absolute path",
    "C:home": "an absolute path",
    "a/b": "a separator",
    "a\\b": "a separator",
    "..": "no name",
    ".": "no name",
    ".hidden": "begins with a dot",
    "": "empty",
    "  ": "empty",
    "a\0b": "cannot be shown",
    "a\nb": "cannot be shown",
    "a\x1bb": "cannot be shown",
    "a\u2028b": "cannot be shown",
    "\udc80": "cannot be shown",
    "x" * 101: "longer than 100 bytes",
    "é" * 51: "longer than 100 bytes",
    "a=b": "holds =",
    "manifest.json": "use themselves",
    "Metrics.JSON": "use themselves",
    "checkpoints": "use themselves",
    "classifier.safetensors": "use themselves",
}


@pytest.mark.parametrize("name", [*BAD, 3, None, ["a"]])
def test_what_is_no_name_is_refused_in_a_sentence(name, tmp_path):
    with pytest.raises(TiltingError) as error:
        inner_path(tmp_path, name, "label")
    assert (BAD[name] if isinstance(name, str) else "is no text") in str(error.value)
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


@pytest.mark.parametrize("name", ["bright", "a b", "größe", "明るい", "style:noto", "a.b", "x" * 100, "-1", "👩‍🚀"])
def test_other_names_are_kept(name, tmp_path):
    assert inner_path(tmp_path, name) == tmp_path / name


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet=st.one_of(st.sampled_from("./\\=\0:~ ab"), st.characters())), st.booleans())
def test_no_text_leads_out(name, nested):
    folder = disk.Path("/nowhere/here")
    try:
        path = inner_path(folder, name, nested=nested)
    except TiltingError:
        return
    assert os.path.normpath(path).startswith("/nowhere/here/") and "\0" not in str(path)
    assert nested or path.parent == folder


def test_a_link_that_leads_out_is_refused(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bright").symlink_to(tmp_path / "home")
    with pytest.raises(TiltingError, match="leads out of"):
        inner_path(tmp_path / "run", "bright")
    with pytest.raises(TiltingError, match="leads out of"):
        inner_path(tmp_path / "run", "bright/a.png", nested=True)


def table(folder, header, kind="csv"):
    """A table of twenty pictures with two labels, one of them of that name."""
    folder.mkdir(parents=True)
    for i in range(20):
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(folder / f"{i}.png")
    if kind == "csv":
        quoted = '"' + header.replace('"', '""') + '"'
        rows = [f"file,{quoted},bright", *(f"{i}.png,{'ab'[i % 2]},{'cd'[i % 2]}" for i in range(20))]
        (folder / "labels.csv").write_text("\n".join(rows) + "\n", errors="surrogatepass")
    else:
        rows = [json.dumps({"file": f"{i}.png", header: "ab"[i % 2], "bright": "cd"[i % 2]}) for i in range(20)]
        (folder / "labels.jsonl").write_text("\n".join(rows) + "\n")
    return folder / f"labels.{kind}"


def tree(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("header", [n for n in BAD if n.strip() and "\n" not in n])
def test_a_header_never_writes_outside(header, kind, tmp_path, monkeypatch, capsys):
    if kind == "csv" and "\udc80" in header:
        pytest.skip("is no UTF-8")
    place = tmp_path / "a" / "b"
    data = table(place / "data", header, kind)
    (tmp_path / "a" / "home" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "home" / "checkpoints" / "mine").write_text("mine")
    monkeypatch.chdir(place)
    before = tree(tmp_path)
    said = refused(capsys, "condition", "fit", "--data", str(data), "--epochs", "1", "--out", "runs/fit")
    assert len(said) <= 320
    assert tree(tmp_path) == before
    said = refused(capsys, "condition", "fit", "--data", str(data), "--label", header, "--epochs", "1", "--out", "runs/fit")
    assert tree(tmp_path) == before


def test_a_fit_leaves_checkpoints_of_others_alone(tmp_path, capsys):
    data = table(tmp_path / "data", "home")
    (tmp_path / "fit" / "home" / "checkpoints").mkdir(parents=True)
    (tmp_path / "fit" / "home" / "checkpoints" / "mine").write_text("mine")
    before = tree(tmp_path)
    assert "checkpoints" in refused(
        capsys, "condition", "fit", "--data", str(data), "--epochs", "1", "--quiet", "--out", str(tmp_path / "fit")
    )
    assert tree(tmp_path) == before


@pytest.mark.parametrize("label", ["../../home", "/tmp/home", "a\0b", "manifest.json"])
def test_a_control_or_a_classifier_with_such_a_label_is_refused(label, tmp_path):
    (tmp_path / "control.json").write_text(json.dumps({"labels": [{"label": label, "classes": ["a", "b"]}], "files": {}}))
    with pytest.raises(TiltingError):
        read_control(tmp_path)
    with pytest.raises(TiltingError):
        checked_name(label)


def test_a_write_is_exclusive_and_follows_no_link(tmp_path, monkeypatch):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / ".a.json.tmp").symlink_to(tmp_path / "theirs")
    write_atomically(tmp_path / "a.json", b"ours")
    assert (tmp_path / "theirs").read_text() == "theirs" and (tmp_path / "a.json").read_bytes() == b"ours"
    monkeypatch.setattr(disk, "unique_beside", lambda path: tmp_path / ".a.json.tmp")
    with pytest.raises(TiltingError, match="cannot write"):
        write_atomically(tmp_path / "a.json", b"more")
    assert (tmp_path / "theirs").read_text() == "theirs" and (tmp_path / "a.json").read_bytes() == b"ours"


def test_it_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (order.append(name), real(*args))[1])
    write_atomically(tmp_path / "a.json", b"ours")
    assert order == ["fsync", "replace"] and [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_weights_and_json_have_the_rights_of_the_umask(mask, tmp_path):
    import torch

    from tilting.models.lora_weights import save_lora

    before = os.umask(mask)
    try:
        save_lora({"unet.a.lora.down.weight": torch.zeros(1, 1)}, tmp_path / "lora")
        write_atomically(tmp_path / "lora" / "a.json", b"{}")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "lora").iterdir()} == {0o666 & ~mask}


def test_any_flipped_bit_of_a_picture_is_seen(tmp_path):
    from tilting.generation.pictures import picture_file as png
    from tilting.lazy import torch

    (tmp_path / "images").mkdir()
    record = {"prompt": "a fox", "seed": 0, "reward": None}
    data = png(torch.rand(3, 8, 8), record, "base")
    file = tmp_path / image_name(0)
    file.write_bytes(data)
    entry = {"images": [{"file": image_name(0)}]}
    assert whole(file) and finished(tmp_path, entry)
    for at in range(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        assert not finished(tmp_path, entry), at
    for cut in (0, 8, 20, len(data) - 12, len(data) - 1):
        file.write_bytes(data[:cut])
        assert not whole(file), cut
