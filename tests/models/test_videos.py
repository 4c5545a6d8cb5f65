"""Videos: states and pictures of one rank more, scored frame by frame or whole, written and read as moving pictures."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

import tilting as tl
from support import tiny_pipelines
from support.commands import manifest
from tilting.cli import main
from tilting.config.generate import resolve
from tilting.features import video as module
from tilting.features.clip import ClipEmbedder
from tilting.features.lpips import Lpips
from tilting.features.packaged import POCKET_CLIP
from tilting.features.vgg import Vgg16
from tilting.features.video import contact_sheet, frames_of, open_frames, read_frames
from tilting.generation.coerce import picture_of
from tilting.generation.pictures import picture_file
from tilting.generation.size import sizes
from tilting.metrics.judge import PocketJudge
from tilting.rewards.check import checked, takes_videos
from tilting.rewards.spec import build, parse_specs
from tilting.rewards.user_file import UserReward
from tilting.rewards.weighted_sum import framed
from tilting.runs.files import whole
from tilting.training.diversity import diversity
from tilting.types import RewardError, TiltingError

PROMPTS = ["a fox", "an owl"]
SIZE = ("--height", "16", "--width", "16", "--frames", "5", "--input", "max_sequence_length=16", "--steps", "2")


@pytest.fixture(scope="module")
def wan():
    pipe, told = tiny_pipelines.wan()
    return tl.load(pipe, **told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("videos") / "wan"
    tiny_pipelines.wan()[0].save_pretrained(place)
    return str(place)


def video(count=2, frames=5, seed=0):
    return torch.rand(count, frames, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def darkness(images, prompts):
    assert images.ndim == 4 and len(prompts) == len(images)
    return 1 - images.flatten(1).mean(1)


def motion(videos, prompts):
    assert videos.ndim == 5 and len(prompts) == len(videos)
    return (videos[:, 1:] - videos[:, :-1]).square().flatten(1).mean(1)


motion.videos = motion.differentiable = True


def test_a_reward_of_pictures_is_the_mean_over_frames():
    videos, jpeg = video(), tl.rewards.jpeg()
    by_hand = torch.stack([jpeg(one, ["a fox"] * 5).mean() for one in videos])
    assert torch.allclose(checked(jpeg, videos, ["a fox", "an owl"]), by_hand)

    def prompted(images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    assert checked(UserReward(prompted, "prompted"), videos, ["a", "an owl"]).tolist() == [1.0, 6.0]


def test_the_former_name_of_videos_is_taken():
    def still(images, prompts):
        return images.flatten(1).mean(1)

    still.films = True
    assert takes_videos(UserReward(still, "still")) and not takes_videos(UserReward(darkness, "darkness"))


def test_the_video_of_a_bad_frame_is_named():
    def broken(images, prompts):
        return torch.where(torch.arange(len(images)) == 7, torch.nan, 1.0)  # the third frame of the second

    broken.name, broken.differentiable = "broken", False
    with pytest.raises(RewardError) as caught:
        checked(broken, video(), ["a fox", "an owl"])
    assert caught.value.row == 1


@pytest.mark.parametrize(("method", "reward"), [("code", darkness), ("bon", motion), ("codex", motion)])
def test_videos_are_steered(wan, method, reward):
    frames = "first" if method == "code" else "all"
    out = tl.generate(wan, "a fox", steps=3, reward=reward, method=method, images=1, reward_frames=frames)
    assert out.images.shape == (1, *wan.image_shape) == (1, 5, 3, 16, 16) and len(out.pil) == 1
    value = checked(UserReward(reward, "mine"), out.images, ["a fox"], frames).item()
    assert out.manifest["images"][0]["reward"] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("frames", "seen"), [("all", range(5)), ("first", [0]), ("middle", [2]), ("1", [2]), ("3", [0, 2, 4]), ("9", range(5))]
)
def test_rewards_of_pictures_score_chosen_frames(frames, seen):
    """Evenly spaced ones; what takes videos whole has them whole; the sum of rewards sees the same."""
    movie, jpeg = video(), tl.rewards.jpeg()
    by_hand = torch.stack([jpeg(one[list(seen)], ["a fox"] * len(seen)).mean() for one in movie])
    assert torch.allclose(checked(jpeg, movie, PROMPTS, frames), by_hand)
    assert torch.allclose(checked(framed(build(parse_specs(["jpeg=2"])), frames), movie, PROMPTS), 2 * by_hand)
    whole_videos = UserReward(motion, "motion")
    assert torch.allclose(checked(framed(whole_videos, frames), movie, PROMPTS), motion(movie, PROMPTS))


def smooth(frames=5, side=16):
    """A video of slow waves, which a codec keeps."""
    x = torch.linspace(0, 3, side)
    waves = [torch.stack([(x[:, None] + x + c + 0.3 * f).sin() / 2 + 0.5 for c in range(3)]) for f in range(frames)]
    return torch.stack(waves)


RECORD = {"reward": 0.5, "prompt": "a fox", "seed": 3}


@pytest.mark.parametrize(("kind", "worst"), [("png", 0), ("webp", 0), ("gif", 24), ("mp4", 12)])
def test_a_video_is_written_and_read(kind, worst, tmp_path):
    """png and webp without loss, a gif of 256 colours, an mp4 of half the colours; what it is stands in it."""
    movie = smooth(side=64)
    movie[3] = movie[2]  # frames that are alike are kept apart
    file = tmp_path / f"video.{kind}"
    file.write_bytes(picture_file(movie, RECORD, "base", kind))
    assert picture_file(movie, RECORD, "base", kind) == file.read_bytes() and whole(file)
    gap = (read_frames(file) - (movie * 255).round() / 255).abs()
    assert gap.shape == movie.shape and (255 * gap).quantile(0.99) <= worst
    if kind == "mp4":
        import av

        with av.open(str(file)) as opened:
            told, rate = opened.metadata["comment"], opened.streams.video[0].average_rate
        assert rate == module.RATE
    else:
        with Image.open(file) as opened:
            told = {
                "png": lambda: json.dumps(opened.text),
                "gif": lambda: opened.info["comment"],
                "webp": lambda: opened.getexif()[270],
            }
            told = told[kind]()
    assert json.loads(told) == {"prompt": "a fox", "seed": "3", "method": "base", "reward": "0.5"}
    for cut in (1, 7, len(file.read_bytes()) // 2):
        file.with_stem("cut").write_bytes(file.read_bytes()[:-cut])
        assert not whole(file.with_stem("cut"))


def test_an_mp4_of_odd_sides_and_a_video_that_is_none(tmp_path, monkeypatch):
    odd = torch.rand(3, 3, 9, 15, generator=torch.Generator().manual_seed(0))
    (tmp_path / "odd.mp4").write_bytes(picture_file(odd, RECORD, "base", "mp4"))
    assert read_frames(tmp_path / "odd.mp4").shape == odd.shape
    assert len(open_frames(tmp_path / "odd.mp4", 2)) == 2
    (tmp_path / "none.mp4").write_bytes(b"no video")
    with pytest.raises(TiltingError, match=r"the picture '.*none.mp4' cannot be read as a video"):
        read_frames(tmp_path / "none.mp4")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for ask in (lambda: read_frames(tmp_path / "odd.mp4"), lambda: picture_file(odd, RECORD, "base", "mp4")):
        with pytest.raises(TiltingError, match=r"needs PyAV: pip install 'tilting\[video\]'"):
            ask()


def test_a_contact_sheet_shows_frames_in_order():
    shades = [(k + 0.5) / 12 for k in range(12)]
    frames = frames_of(torch.stack([torch.full((3, 4, 6), shade) for shade in shades]))
    sheet = contact_sheet(frames)
    assert sheet.size == (18, 12)
    seen = [sheet.getpixel((6 * (i % 3), 4 * (i // 3)))[0] for i in range(9)]
    assert seen == sorted(set(seen)) and seen[0] == frames[0].getpixel((0, 0))[0] and seen[-1] == frames[-1].getpixel((0, 0))[0]
    assert contact_sheet(frames[:1]).size == (6, 4) and contact_sheet(frames[:4]).size == (12, 8)
    assert contact_sheet(frames[:2]).size == (12, 4) and contact_sheet(frames[:5]).size == (12, 8)


def test_instruments_take_the_mean_over_frames():
    """The judge, LPIPS of pairs of videos, the term of diversity."""
    movie, judge = video(), PocketJudge()
    each = judge.score(movie.flatten(0, 1), [p for p in PROMPTS for _ in range(5)]).unflatten(0, (2, 5))
    assert torch.allclose(judge.score(movie, PROMPTS), each.mean(1), atol=1e-5)
    torch.manual_seed(0)
    lpips = Lpips(Vgg16((4, 4, 6, 6, 8)))
    with torch.no_grad():
        by_frame = torch.stack([lpips(movie[:1, k], movie[1:, k]) for k in range(5)]).mean(0)
        assert torch.allclose(lpips(movie[:1], movie[1:]), by_frame, rtol=1e-4)
    far = diversity("euclid=1").measure
    assert torch.allclose(far(movie[:1], movie[1:]), torch.stack([far(movie[:1, k], movie[1:, k]) for k in range(5)]).mean(0))


@pytest.mark.parametrize("kind", ["png", "mp4"])
def test_a_run_of_videos_is_a_run(folder, tmp_path, capsys, kind):
    """It goes on with the same bytes, its records are of the chosen frames, and other frames are another run."""
    words = ["generate", "a fox", "--model", folder, *SIZE, "--reward", "jpeg", "--method", "bon", "--particles", "2"]
    words += ["--images", "2", "--reward-frames", "first", "--format", kind, "--quiet", "--out", str(tmp_path / "a")]
    assert main(words) == 0
    records = manifest(tmp_path / "a")["images"]
    assert (tmp_path / "a/grid.png").exists() and [r["file"][-3:] for r in records] == [kind] * 2
    drawn = (tmp_path / f"a/images/00001.{kind}").read_bytes()
    if kind == "png":
        for record in records:
            value = tl.rewards.jpeg()(read_frames(tmp_path / "a" / record["file"])[:1], ["a fox"]).item()
            assert record["reward"] == pytest.approx(value, abs=0.05)
    (tmp_path / f"a/images/00001.{kind}").unlink()
    assert main(words) == 0
    assert (tmp_path / f"a/images/00001.{kind}").read_bytes() == drawn
    capsys.readouterr()
    assert main(["all" if word == "first" else word for word in words]) == 2
    assert 'with other reward-frames ("first" there, "all" now)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "jpeg"], "a video is written as png, webp, gif or mp4, not as jpeg: give --format webp"),
        (
            ["--reward-frames", "last"],
            "reward-frames must be all, first, middle, or a number of frames from 1 to 257, not 'last'",
        ),
        (["--reward-frames", "0"], "a number of frames from 1 to 257, not '0'"),
        (["--image", "short.gif"], "the video of --image has 2 frames, and 5 are drawn"),
    ],
)
def test_what_does_not_fit_a_video_is_one_sentence(folder, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.gif").write_bytes(picture_file(smooth(2), RECORD, "base", "gif"))
    run = ["generate", "a fox", "--model", folder, *SIZE, "--out", "out", "--quiet"]
    assert main([*run, *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out" / "images").exists()


def test_a_picture_is_no_video(tmp_path, capsys):
    run = ["generate", "a fox", "--steps", "2", "--reward", "jpeg", "--quiet", "--out", str(tmp_path / "out")]
    assert main([*run, "--format", "gif"]) == 2
    assert "a picture is written as png, jpeg or webp, not as gif: give --format png" in capsys.readouterr().err


def test_videos_are_drawn_from_a_video(wan, tmp_path):
    """SDEdit: what is noised is the video's own coding, of a file or frames, whose first are taken; a still stands still."""
    movie = smooth(7)
    (tmp_path / "video.webp").write_bytes(picture_file(movie, RECORD, "base", "webp"))
    eight = (movie * 255).round() / 255
    assert picture_of(tmp_path / "video.webp", 16, 16, 5).equal(eight[None, :5])
    with torch.no_grad():
        coded = wan.pipe.vae.encode((eight[None, :5] * 2 - 1).transpose(1, 2)).latent_dist.mode()
        seen = wan.before_decoder(wan.encode(eight[None, :5]))
    assert seen.allclose(coded, atol=1e-5)
    how = {"steps": 4, "eta": 0.0, "cfg": 1.0, "strength": 0.5, "progress": False}
    drawn = tl.generate(wan, "a fox", image=tmp_path / "video.webp", **how).images
    assert drawn.shape == (1, 5, 3, 16, 16) and not drawn.equal(tl.generate(wan, "a fox", image=1 - eight, **how).images)
    assert tl.generate(wan, "a fox", image=frames_of(eight), **how).images.equal(drawn)
    assert tl.generate(wan, "a fox", image=eight, **how).images.equal(drawn)
    still = tl.generate(wan, "a fox", image=frames_of(eight[0])[0], **how).images
    assert still.equal(tl.generate(wan, "a fox", image=eight[:1].expand(5, -1, -1, -1)[None], **how).images)


@pytest.mark.slow
def test_videos_are_compared_and_evaluated(folder, tmp_path):
    """Pages show contact sheets; embeddings, and so CLIP's numbers, are means over frames."""
    words = ["compare", "a fox", "--model", folder, *SIZE, "--methods", "base,bon", "--images", "2", "--reward", "jpeg"]
    assert main([*words, "--quiet", "--out", str(tmp_path / "c")]) == 0
    page = (tmp_path / "c" / "compare.html").read_text()
    shown = [Image.open(io.BytesIO(base64.b64decode(one))) for one in re.findall(r'src="data:image/webp;base64,([^"]+)"', page)]
    assert len(shown) == 4 and {one.size for one in shown} == {(32, 32)}
    runs = [str(tmp_path / "c" / "runs" / name) for name in ("base", "bon")]
    assert main(["evaluate", *runs, "--quiet", "--out", str(tmp_path / "e")]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    clip = ClipEmbedder(POCKET_CLIP)
    movies = [read_frames(tmp_path / "c" / "runs" / "bon" / f"images/0000{i}.png") for i in (0, 1)]
    with torch.no_grad():
        text = clip.text(["A photo depicts a fox"])
        means = torch.stack([clip.image(movie).mean(0) for movie in movies])
        want = 2.5 * torch.cosine_similarity(means, text).clamp(min=0).mean()
    (row,) = [row for row in metrics["runs"] if row["name"] == "bon"]
    assert row["tclip"]["mean"] == pytest.approx(want.item(), abs=1e-5) and row["verdict"] is not None


def test_a_video_model_is_fine_tuned(folder, tmp_path):
    words = ["finetune", "a fox", "--model", folder, *SIZE, "--reward", "jpeg", "--objective", "ddpo", "--reward-frames", "2"]
    words += ["--batch-size", "2", "--train-steps", "1", "--sample-every", "1", "--quiet", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert (tmp_path / "run" / "lora").exists() and manifest(tmp_path / "run")["config"]["reward-frames"] == "2"


@pytest.mark.slow
def test_a_look_decoder_of_pictures_is_refused_for_videos_and_a_reward_of_pictures_counted(folder, tmp_path):
    config = {"prompts": ["a fox"], "model": folder, "reward": ["clip"], "height": 16, "width": 16, "frames": 5}
    found = sizes(resolve(config), tl.rewards.clip(), count=False, back=False)
    assert found.units["reward"].peak > 0
    AutoencoderTiny(latent_channels=tiny_pipelines.wan()[0].vae.config.z_dim).save_pretrained(tmp_path / "flat")
    said = "is a AutoencoderTiny, and .* has a AutoencoderKLWan, one of them of pictures and one of videos"
    with pytest.raises(TiltingError, match=said):
        tl.load(folder, height=16, width=16, num_frames=5, look_decoder=str(tmp_path / "flat"))
    with pytest.raises(TiltingError, match=said):
        sizes(resolve({**config, "look-decoder": str(tmp_path / "flat")}), count=False, back=False)
