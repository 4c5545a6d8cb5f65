"""A reward of noisy latents: selections see it at every noise, nothing is decoded for it, and nobody else may ask it."""

from __future__ import annotations

import pytest
import torch

import tilting as tl
from support.chains import problem, run
from tilting import presets
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.generation.generate import Drawn, draw
from tilting.generation.plan import identities, plan
from tilting.rewards import UserReward
from tilting.sample import finish

SEEN: list[tuple[float, tuple[int, ...]]] = []


def score(latents, time, prompts):
    """The first channel's mean where there is no noise, its part of it before."""
    SEEN.append((time.alpha, tuple(latents.shape)))
    return time.alpha * latents.flatten(1)[:, 0]


score.latents = True


@pytest.mark.parametrize("name", ["code", "smc", "svdd", "bon"])
def test_selection_is_by_the_latents_at_their_own_time(mixture, name):
    """Of a problem that has both, the noisy reward chooses: greedy parents are the best of it at x_t, not at x0(x_t)."""
    seen = []

    def noisy(x, t, rows):
        seen.append((t, x.clone()))
        return t.alpha * x[:, 0] - t.sigma

    p = problem(mixture, 6, 2, value=lambda x0, rows: noisy(x0, p_clean, rows), noisy=noisy)
    p_clean = p.grid[-1]
    method = {"code": presets.code(3, block=2), "smc": presets.smc(3, block=2), "svdd": presets.svdd(3), "bon": presets.bon(3)}
    state, infos = run(p, method[name].build(6))
    for info in infos:
        if info.value is None:
            continue
        t, x = next((t, x) for t, x in seen if t == p.grid[info.step - 1])
        assert torch.allclose(info.value.flatten(), (t.alpha * x[:, 0] - t.sigma).double())
        if name == "code":
            assert (info.parents == info.value.argmax(1)[:, None]).all()
    finish(p, method[name].build(6), state)
    assert len({t for t, _ in seen}) == {"code": 3, "smc": 3, "svdd": 5, "bon": 1}[name]


def test_a_run_decodes_what_it_keeps_alone():
    SEEN.clear()
    model, reward = tl.load("pocket"), UserReward(score, "mine")
    request = plan(model, identities(["a fox"], 0, 2), presets.code(3, block=1), reward, steps=4)
    (drawn,) = [event for event in draw(model, request) if isinstance(event, Drawn)]
    assert (drawn.counts.decodes, drawn.counts.evaluations) == (2, 2 * 3 * 4)
    assert drawn.counts.reward_calls == 2 * (3 * 3 + 3 + 1)  # three selections, the finished ones, and the kept one
    assert len({alpha for alpha, _ in SEEN}) == 4 and SEEN[-1][0] == 1.0 and SEEN[-1][1][1:] == model.latent_shape
    assert drawn.rewards == {"mine": drawn.reward} and drawn.images.shape[1:] == model.image_shape


@pytest.mark.parametrize("method", ["base", "code", "bon"])
def test_a_trace_shows_pictures_of_what_it_looks_at(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def score(latents, time, prompts):\n    return latents.mean((1, 2, 3))\nscore.latents = True\n"
    )
    words = ["generate", "a fox", "--method", method, "--steps", "3", "--reward", "mine.py:score", "--quiet"]
    assert main([*words, "--out", "plain"]) == main([*words, "--trace", "--out", "traced"]) == 0
    pictures = [next((tmp_path / out).rglob("*.png")).read_bytes() for out in ("plain/images", "traced/images")]
    assert pictures[0] == pictures[1] and "data:image/webp" in (tmp_path / "traced" / "trace.html").read_text()


def test_others_refuse_it_in_a_sentence(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "def score(latents, time, prompts):\n    return latents.mean((1, 2, 3))\nscore.latents = True\n"
    )
    spec = f"{tmp_path}/mine.py:score"
    words = ["generate", "a fox", "--method", "bon", "--steps", "2", "--out", str(tmp_path / "o")]
    assert main([*words, "--reward", spec, "--reward", "clip"]) == 2
    assert "scores latents, not pictures: it stands alone, so leave the others out" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert main([*words, "--reward", spec]) == 0
    with pytest.raises(TiltingError, match="scores latents, and here are pictures"):
        UserReward(score, "mine")(torch.rand(1, 3, 8, 8), ["a fox"])
