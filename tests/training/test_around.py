"""What stands around a run: who waits for whom among its processes, and trackers that nobody is logged in to."""

from __future__ import annotations

import pytest

from support.finetuning import REWARDS, train
from support.processes import launched
from tilting.config.training import check_trackers
from tilting.errors import TiltingError
from tilting.training.processes import LIMIT

WAIT = """
import sys, time
from datetime import timedelta
from tilting.training.processes import accelerator, over

limit, pause = map(float, sys.argv[1:])
inner = accelerator("cpu", timedelta(seconds=limit))
engine = over(inner, "cpu")
if engine.main:
    time.sleep(pause)  # a judge that is slower than the limit
numbers = engine.broadcast({"judge": 0.5} if engine.main else None)
print(engine.index, numbers, flush=True)
inner.wait_for_everyone()
inner.end_training()  # as a run ends: a process that leaves while another still listens may abort
"""


@pytest.mark.slow
def test_the_others_wait_for_the_main_process_as_long_as_the_limit_says(tmp_path):
    """Twice two real processes, the main one busy alone for 8 seconds between two collectives; at once, since they sleep."""
    (tmp_path / "wait.py").write_text(WAIT)
    several = [(launched(tmp_path, str(limit), "8", module="wait"), waits) for limit, waits in ((3.0, False), (120.0, True))]
    for processes, waits in several:
        said = [one.communicate() for one in processes]
        assert all(one.returncode == 0 for one in processes) == waits, said
        assert ("1 {'judge': 0.5}" in said[1][0]) == waits, said


def test_the_limit_of_a_run_is_longer_than_any_judge():
    assert LIMIT.total_seconds() >= 24 * 3600


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """wandb as good as installed, in a home where nobody is logged in."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_tracker_that_is_not_logged_in_is_refused_before_anything_is_read(wandb, capsys):
    (wandb / "r.py").write_text(REWARDS)
    assert train(wandb / "run", "--tracker", "wandb") == 2
    assert "wandb login" in capsys.readouterr().err and not (wandb / "run").exists()


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ({}, False),
        ({"WANDB_MODE": "online"}, False),
        ({"WANDB_MODE": "offline"}, True),
        ({"WANDB_MODE": "disabled"}, True),
        ({"WANDB_API_KEY": "k" * 40}, True),
        ({"netrc": "machine api.wandb.ai login user password x"}, True),
        ({"netrc": "machine example.org login user password x"}, False),
        ({"netrc": "machine own.example login user password x", "WANDB_BASE_URL": "https://own.example:8080"}, True),
        ({"netrc": "nonsense"}, False),
    ],
)
def test_who_wandb_tracks_for_is_known_offline_by_the_environment_or_a_login(wandb, monkeypatch, said, known):
    for name, value in said.items():
        if name == "netrc":
            (wandb / ".netrc").write_text(value + "\n")
            (wandb / ".netrc").chmod(0o600)
        else:
            monkeypatch.setenv(name, value)
    if known:
        assert check_trackers("tracker", ("wandb",)) == ("wandb",)
    else:
        with pytest.raises(TiltingError, match="WANDB_MODE=offline"):
            check_trackers("tracker", ("wandb",))
