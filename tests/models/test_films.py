"""Films: states and pictures of one rank more, scored frame by frame or whole, written as animated pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import tilting as tl
from support import tiny_pipelines
from support.commands import manifest
from tilting.cli import main
from tilting.generation.run import picture_file
from tilting.rewards.check import checked
from tilting.rewards.user_file import UserReward
from tilting.types import RewardError

SIZE = ("--height", "16", "--width", "16", "--frames", "5", "--input", "max_sequence_length=16", "--steps", "2")


@pytest.fixture(scope="module")
def wan():
    pipe, told = tiny_pipelines.wan()
    return tl.load(pipe, **told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("films") / "wan"
    tiny_pipelines.wan()[0].save_pretrained(place)
    return str(place)


def film(count=2, frames=5, seed=0):
    return torch.rand(count, frames, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def darkness(images, prompts):
    assert images.ndim == 4 and len(prompts) == len(images)
    return 1 - images.flatten(1).mean(1)


def motion(films, prompts):
    assert films.ndim == 5 and len(prompts) == len(films)
    return (films[:, 1:] - films[:, :-1]).square().flatten(1).mean(1)


motion.films = motion.differentiable = True


def test_a_reward_of_pictures_is_the_mean_over_frames():
    films, jpeg = film(), tl.rewards.jpeg()
    by_hand = torch.stack([jpeg(one, ["a fox"] * 5).mean() for one in films])
    assert torch.allclose(checked(jpeg, films, ["a fox", "an owl"]), by_hand)

    def prompted(images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    assert checked(UserReward(prompted, "prompted"), films, ["a", "an owl"]).tolist() == [1.0, 6.0]


def test_the_film_of_a_bad_frame_is_named():
    def broken(images, prompts):
        return torch.where(torch.arange(len(images)) == 7, torch.nan, 1.0)  # the third frame of the second

    broken.name, broken.differentiable = "broken", False
    with pytest.raises(RewardError) as caught:
        checked(broken, film(), ["a fox", "an owl"])
    assert caught.value.row == 1


@pytest.mark.parametrize(("method", "reward"), [("code", darkness), ("bon", motion), ("codex", motion)])
def test_films_are_steered(wan, method, reward):
    out = tl.generate(wan, "a fox", steps=3, reward=reward, method=method, images=1)
    assert out.images.shape == (1, *wan.image_shape) == (1, 5, 3, 16, 16) and len(out.pil) == 1
    value = checked(UserReward(reward, "mine"), out.images, ["a fox"]).item()
    assert out.manifest["images"][0]["reward"] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_film_is_written_without_loss(kind):
    (one,) = film(1)
    record = {"reward": 0.5, "prompt": "a fox", "seed": 3}
    with Image.open(io.BytesIO(picture_file(one, record, "base", kind))) as read:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(read)]
        assert kind == "webp" or read.text["prompt"] == "a fox"
    assert np.array_equal(np.stack(frames), (one * 255).round().byte().permute(0, 2, 3, 1).numpy())


def test_a_run_of_films_is_a_run(folder, tmp_path, capsys):
    words = ["generate", "a fox", "--model", folder, *SIZE, "--reward", "jpeg", "--method", "bon", "--particles", "2"]
    words += ["--images", "2", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a/grid.png").exists() and len(manifest(tmp_path / "a")["images"]) == 2
    drawn = (tmp_path / "a/images/00001.png").read_bytes()
    (tmp_path / "a/images/00001.png").unlink()
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a/images/00001.png").read_bytes() == drawn
    capsys.readouterr()
    assert main([*words, "--format", "jpeg", "--out", str(tmp_path / "b")]) == 2
    assert "tilting: a film is written as png or webp" in capsys.readouterr().err and not (tmp_path / "b" / "images").exists()


def test_a_film_model_is_fine_tuned(folder, tmp_path):
    words = ["finetune", "a fox", "--model", folder, *SIZE, "--reward", "jpeg", "--objective", "ddpo"]
    words += ["--batch-size", "2", "--train-steps", "1", "--sample-every", "1", "--quiet", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert (tmp_path / "run" / "lora").exists()
