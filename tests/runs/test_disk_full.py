"""A full disk is one sentence in every command, and with room again the same command ends as if it had always been there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.killing import COMMANDS, prepare
from support.processes import WORDS, begun
from tilting import disk
from tilting.cli import main
from tilting.errors import TiltingError


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no limits of file sizes")
def test_every_command_says_so_and_goes_on_with_room(tmp_path):
    """By the system's limit of a file's size, which every write of any library meets."""
    prepare(tmp_path)
    process = begun(tmp_path, "--full", *COMMANDS, module="support.killing")
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert out.count("File too large") == 3 * len(COMMANDS), out
    assert not [line for line in out.split("tilting: ") if len(line) > 300]


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path, folder):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tilting", str(small)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (tmp_path / "r.py").write_text("def slow(images, prompts): return images.mean((1, 2, 3))\nslow.differentiable = True\n")
        words = [*WORDS, "--checkpoint-every", "1", "--model", str(folder), "--out", "small/run"]
        full = begun(tmp_path, *words)
        said = full.communicate()[1]
        assert full.returncode == 2 and said.count("\n") == 1 and "No space left on device" in said, said
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        again = begun(tmp_path, *words)
        assert again.communicate()[1] == "" and again.returncode == 0
        assert (small / "run" / "lora").is_dir() and len((small / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize("at", range(1, 8))
def test_a_write_that_fails_anywhere_leaves_the_file_as_it_was(at, tmp_path, monkeypatch):
    """At each call of the system in turn, until there are no more of them."""
    calls = 0

    def failing(name):
        real = getattr(os, name)

        def call(*args, **options):
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(28, "No space left on device")
            return real(*args, **options)

        return call

    (tmp_path / "a").write_bytes(b"before")
    for name in ("open", "write", "fsync", "replace"):
        monkeypatch.setattr(os, name, failing(name))
    for write in (disk.write_atomically, disk.append):
        try:
            write(tmp_path / "a", b"after")
        except TiltingError as error:
            assert str(error).endswith("No space left on device")  # noqa: PT017
            break
    monkeypatch.undo()
    wanted = {1: b"before", 2: b"before", 3: b"before", 4: b"after", 5: b"after", 6: b"after"}
    assert (tmp_path / "a").read_bytes() == wanted.get(at, b"afterafter")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_the_machine_refuses_elsewhere_is_a_sentence_too(tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "events.out")

    monkeypatch.setattr("tilting.reports.grid.write_grid", full)
    words = ["generate", "a fox", "--steps", "2", "--quiet", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert capsys.readouterr().err.endswith("tilting: cannot go on: No space left on device 'events.out'\n")
