"""One writer at a time: a second process in an --out gets a sentence, and a lock dies with its process. Real processes."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from support.processes import WORDS, awaited, begun
from tilting.disk import sweep_beside, unique_beside
from tilting.errors import TiltingError
from tilting.runs.lock import LOCK, exclusive

REWARD = """
import pathlib, time

def slow(images, prompts):
    pathlib.Path("drawn").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.05)
    return images.mean((1, 2, 3))
slow.differentiable = True
"""


@pytest.mark.slow
def test_a_second_process_gets_a_sentence_and_a_killed_one_lets_go(tmp_path, folder):
    (tmp_path / "r.py").write_text(REWARD)
    words = [*WORDS, "--model", str(folder), "--out", "run"]
    first = begun(tmp_path, *words)
    awaited(tmp_path / "drawn", first)
    for other in (words, ["generate", "a fox", "--out", "run"], ["compare", "a fox", "--reward", "clip", "--out", "run"]):
        second = begun(tmp_path, *other)
        said = second.communicate(timeout=120)[1]
        assert second.returncode == 2 and said.count("\n") == 1, said
        assert "another process is writing into --out 'run'" in said
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert (tmp_path / "run" / LOCK).exists()
    (tmp_path / "go").touch()
    third = begun(tmp_path, *words)
    assert third.communicate(timeout=120)[1] == "" and third.returncode == 0
    assert [line[:9] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == ['{"step": ', '{"step": ']
    assert not (tmp_path / "run" / LOCK).exists()


def test_the_folder_is_gone_again_if_nothing_was_written(tmp_path):
    out = tmp_path / "a" / "b"
    with exclusive(str(out)), exclusive(str(out)):
        assert (out / LOCK).exists()
    assert not (tmp_path / "a").exists()
    with exclusive(str(out)):
        (out / "kept").touch()
    assert [p.name for p in out.iterdir()] == ["kept"]
    with exclusive(str(tmp_path / "c"), beside=True):
        assert not (tmp_path / "c").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_another_thread_is_refused(tmp_path):
    said = []

    def enter():
        try:
            with exclusive(str(tmp_path)):
                said.append("in")
        except TiltingError as error:
            said.append(str(error))

    with exclusive(str(tmp_path)):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    enter()
    assert "another process is writing" in said[0] and said[1] == "in"


def test_of_a_launcher_the_main_process_holds_it(tmp_path, monkeypatch):
    with exclusive(str(tmp_path)):
        monkeypatch.setenv("RANK", "1")
        threads = [threading.Thread(target=lambda: exclusive(str(tmp_path)).__enter__())]
        for thread in threads:
            thread.start()
            thread.join()
        assert [p.name for p in tmp_path.iterdir()] == [LOCK]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "theirs")
    with pytest.raises(TiltingError, match="cannot write into --out"), exclusive(str(tmp_path / "run")):
        pass
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_what_a_killed_process_was_writing_is_swept(tmp_path):
    (tmp_path / "manifest.json").write_text('{"config": {}, "images": []}')
    left = tmp_path / "images" / ".00000.png.0123456789abcdef.tilting"
    left.parent.mkdir()
    left.touch()
    (tmp_path / "checkpoints" / ".00000001.0123456789abcdef.tilting").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".00000001.0123456789abcdef.tilting" / "state.json").touch()
    (tmp_path / ".mine.tilting").touch()
    with exclusive(str(tmp_path)):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".mine.tilting", "checkpoints", "images", "manifest.json"]


def test_what_is_left_beside_a_folder_that_was_not_made_yet_is_swept_by_the_same_out_alone(tmp_path):
    """Of a killed look whether it can be written, and of an evaluation that was going to be renamed."""
    for name, inside in (("run", False), ("judged", True), ("a" * 60 + "1", False), ("a" * 60 + "2", False)):
        left = unique_beside(tmp_path / name)
        left.mkdir()
        if inside:
            (left / "metrics.json").touch()
    for name in ("run", "judged", "a" * 60 + "1"):
        with exclusive(str(tmp_path / name), beside=name == "judged"):
            pass
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1 and left[0].startswith(f".{'a' * 40}.")  # another's
    with exclusive(str(tmp_path / ("a" * 60 + "2") / "deeper")):
        pass
    assert len(list(tmp_path.iterdir())) == 1
    with exclusive(str(tmp_path / ("a" * 60 + "2"))):
        pass
    assert not list(tmp_path.iterdir())


def test_what_another_process_removes_meanwhile_is_no_error(tmp_path, monkeypatch):
    """Each process of a command tries whether it may write, beside the folder, and takes that away again."""
    left, other, is_dir = unique_beside(tmp_path / "out"), unique_beside(tmp_path / "out"), Path.is_dir
    left.mkdir()
    other.mkdir()

    def is_dir_and_gone(path):
        found = is_dir(path)
        if path == left:
            left.rmdir()
        return found

    monkeypatch.setattr(Path, "is_dir", is_dir_and_gone)
    sweep_beside(tmp_path / "out")
    assert not left.exists() and not other.exists()
