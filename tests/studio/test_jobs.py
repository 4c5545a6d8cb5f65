"""Commands in the queue: one at a time on a device; they are stopped, go on, and are found again by another studio."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tilting.errors import TiltingError
from tilting.studio.jobs import Jobs
from tilting.studio.workspace import Workspace

SLOW = "import time\ntime.sleep({seconds})\ndef score(images, prompts):\n    return images.mean((1, 2, 3))\n"


def wait(jobs: Jobs, until: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not until():
        jobs.tick()
        assert time.monotonic() < end, {job.number: (jobs.state(job), jobs.said(job)) for job in jobs.all.values()}
        time.sleep(0.05)


def states(jobs: Jobs) -> dict[int, str]:
    return {job.number: jobs.state(job) for job in jobs.all.values()}


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "slow.py").write_text(SLOW.format(seconds=120))
    return tmp_path


def slow(out: str) -> tuple[list[str], str]:
    return ["generate", "a fox", "--reward", "slow.py:score", "--steps", "2", "--out", out], out


@pytest.mark.slow
def test_one_at_a_time_and_a_studio_that_is_started_again(root):
    jobs = Jobs(root, root / "jobs")
    first, second = jobs.add(*slow("a")), jobs.add(["methods", "codx"], "b")
    third = jobs.add(["rewards"], "c", device="cuda:1")
    assert states(jobs) == {first.number: "runs", second.number: "waits", third.number: "runs"}
    with pytest.raises(TiltingError, match="job 1 runs and writes into 'a'"):
        jobs.add(*slow("a"))
    wait(jobs, lambda: states(jobs)[3] == "is done")

    later = Jobs(root, root / "jobs")  # the studio was killed; its commands were not
    later.tick()
    assert states(later) == {1: "runs", 2: "was stopped", 3: "is done"}
    later.stop(1)
    wait(later, lambda: states(later)[1] != "runs")
    last = later.again(2)
    wait(later, lambda: states(later)[last.number] == "failed")
    assert later.said(later.find(last.number)).startswith("tilting: there is no method 'codx'")

    (root / "slow.py").write_text(SLOW.format(seconds=0))
    with pytest.raises(TiltingError, match=r"job 1 was not begun on this page, and names 'slow.py:score'.*tilting generate"):
        later.again(1)
    wait(jobs, lambda: states(jobs)[1] != "runs")
    again = jobs.again(1)
    assert again.words == first.words
    assert jobs.of("a") == again
    wait(jobs, lambda: states(jobs)[again.number] in ("is done", "failed"))
    assert states(jobs)[again.number] == "is done", jobs.said(again)
    assert (root / "a" / "grid.png").is_file()


def test_a_job_that_waits_is_taken_out(root):
    jobs = Jobs(root, root / "jobs")
    jobs.add(["rewards"], "a")
    waiting = jobs.add(["rewards"], "b")
    jobs.stop(waiting.number)
    assert states(jobs)[waiting.number] == "was stopped"
    wait(jobs, lambda: states(jobs)[1] == "is done")
    assert states(jobs)[waiting.number] == "was stopped"
    with pytest.raises(TiltingError, match="there is no job 9"):
        jobs.stop(9)


FOREIGN = [
    ["generate", "a fox", "--reward", "mark.py:score", "--steps", "2", "--out", "o"],
    ["generate", "a fox", "--reward=mark.py:score", "--out", "o"],
    ["generate", "--config", "words.yaml", "--out", "o"],
    ["generate", "a fox", "--reward", "vlm:http://far.example/v1#m", "--out", "o"],
]


@pytest.mark.parametrize("words", FOREIGN)
def test_a_job_that_a_file_tells_of_runs_nobodys_code(root, words):
    """A folder of somebody else, opened as a workspace: nothing starts, and a click is told the command instead."""
    (root / "mark.py").write_text("open('ran', 'w').close()\n")
    (root / "jobs").mkdir()
    told = {"number": 1, "words": words, "out": "o"}
    (root / "jobs" / "1.json").write_text(json.dumps(told))
    (root / "jobs" / "2.json").write_text(json.dumps({**told, "number": 2, "pid": os.getpid(), "begun": 1.0}))
    jobs = Jobs(root, root / "jobs")
    jobs.stop(2)  # which is this process, and not the job
    jobs.tick()
    assert states(jobs) == {1: "was stopped", 2: "is done"} and not jobs.mine
    with pytest.raises(TiltingError, match="not begun on this page"):
        jobs.again(1)
    assert not (root / "ran").exists() and len(jobs.all) == 2


@pytest.mark.parametrize("words", FOREIGN)
def test_a_run_that_a_manifest_tells_of_goes_on_by_nobodys_code(root, words):
    """ "Go on" of a folder without a job takes the command of its manifest, which may be somebody else's."""
    go_on = pytest.importorskip("tilting.studio.follow").go_on
    (root / "o").mkdir()
    (root / "o" / "manifest.json").write_text(json.dumps({"argv": ["tilting", *words], "config": {}, "images": []}))
    studio = SimpleNamespace(jobs=Jobs(root, root / "jobs"), workspace=Workspace(root))
    with pytest.raises(TiltingError, match="'o' was not begun on this page, and names"):
        go_on(studio, "o")
    assert not studio.jobs.all


def test_a_file_that_is_no_job_is_left_alone(root):
    (root / "jobs").mkdir()
    (root / "jobs" / "7.json").write_text('{"number": "x"}')
    assert Jobs(root, root / "jobs").all == {}
