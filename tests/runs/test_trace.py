"""--trace: who comes from whom is what the loop did, the pictures are those of a run without it, and the files are small."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import tilting as tl
from support.chains import problem
from support.commands import manifest, refused
from support.tiny_pipelines import make
from tilting.cli import main
from tilting.generation.generate import Drawn, Step
from tilting.generation.score import Counts
from tilting.generation.trace import MOST_PIXELS, Recorder
from tilting.models.pipeline import Pipeline
from tilting.presets import METHODS
from tilting.reports.trace import Look, Trace, read_trace
from tilting.reports.trace_page import figure, page
from tilting.runs.files import TRACE_TOLD
from tilting.sample import finish, sample, start
from tilting.schedule import Schedule, scaled_linear
from tilting.state import evaluate_value
from tilting.types import Prediction

WORDS = "generate a-fox --method codex --particles 3 --set codex.block=1 --set codex.gradient_block=2 --steps 4".split()  # noqa: SIM905
STEPS = 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run with a trace and without one."""
    place = tmp_path_factory.mktemp("runs")
    for name, more in (("traced", ["--trace"]), ("plain", [])):
        assert main([*WORDS, "--images", "2", "--batch-size", "3", "--quiet", "--out", str(place / name), *more]) == 0
    return place


def test_a_traced_run_is_the_run(runs):
    """Pictures to the bit, records and what the method paid: a trace adds which particle was kept, and the selections."""
    traced, plain = manifest(runs / "traced"), manifest(runs / "plain")
    for mine, theirs in zip(traced["images"], plain["images"], strict=True):
        assert (runs / "traced" / mine["file"]).read_bytes() == (runs / "plain" / theirs["file"]).read_bytes()
        assert {key: value for key, value in mine.items() if key not in ("kept", "parents")} == theirs
    for key in ("evaluations", "decodes", "reward_calls"):
        assert traced["summary"][key] == plain["summary"][key]
    assert not [file for file in (runs / "plain").iterdir() if "trace" in file.name]


def test_the_lineage_is_what_the_loop_did_and_the_manifest_says_it(runs, pocket):
    """Against the loop, stepped by hand: its parents, followed backwards from the particle that was kept."""
    config = tl.plan(
        pocket,
        tl.identities(["a-fox"], 0, 2),
        tl.presets.codex(particles=3, block=1, gradient_block=2),
        tl.rewards.clip(),
        steps=4,
        batch_size=3,
    )
    told, seen = [], []
    for event in tl.draw(pocket, config):
        if isinstance(event, Step):
            seen.append(event.info)
        else:
            told.append((seen, int(event.kept[0]), event.values[0].tolist()))
            seen = []
    for number, (record, (infos, kept, values)) in enumerate(zip(manifest(runs / "traced")["images"], told, strict=True)):
        trace = read_trace(runs / "traced", number)
        parents = [[info.step, info.parents[0].tolist()] for info in infos if info.parents is not None]
        assert record["parents"] == trace.parents() == parents and len(parents) == 3
        assert record["kept"] == trace.kept == kept and record["reward"] == trace.looks[-1].values[kept] == values[kept]
        line, at = [(4, kept)], kept
        for info in reversed(infos):
            at = at if info.parents is None else int(info.parents[0, at])
            line.append((info.step - 1, at))
        assert trace.ancestry() == set(line)
        for look, info in zip(trace.looks, infos, strict=False):
            assert info.value is None or look.values == tuple(info.value[0].tolist())
            assert (look.moved is None) == (info.step != 3)  # the third step begins after two draws
            assert look.ess == (1.0 if info.parents is not None else None)


def engine_of(name):
    return type(METHODS[name]().build(STEPS).engine).__name__


MARKED = [name for name in METHODS if engine_of(name) in ("NoneType", "PathSearch")]
KEEPING = [name for name in METHODS if engine_of(name) in ("Optimise", "NoiseSearch")]


def traced(mixture, method, eta=1.0):
    """(the trace of a run in the plane, its last x): coordinates that model and reward leave alone mark particles."""
    p = problem(mixture, STEPS, schedule=Schedule("v_prediction", scaled_linear()), eta=eta)
    plain, value = p.denoise, p.value

    def denoise(x, t, rows):
        mark = x[:, 2:]
        parts = zip(plain(x[:, :2], t, rows), (0 * mark, mark / t.alpha, 0 * mark), strict=True)
        return Prediction(*(torch.cat(part, 1) for part in parts))

    p = replace(p, denoise=denoise, value=lambda x0, rows: value(x0[:, :2], rows), shape=(2 + method.particles_at(0, STEPS),))
    state = start(p, method)
    x = state.x.clone()
    x[..., 2:] = p.grid[0].alpha * 1000 * torch.eye(x.shape[1])
    state = replace(state, x=x)
    model = SimpleNamespace(decode=lambda x: x[:, :2, None, None].sigmoid()[:, [0, 1, 1]].expand(-1, 3, 4, 4))
    plan = SimpleNamespace(batch_size=64, reward=None, ticks=STEPS, method=method, preset=SimpleNamespace(name=method.name))
    recorder = Recorder(model, plan)
    for state, info in sample(p, method, state):  # noqa: B020
        recorder(Step(0, 1, info.step, STEPS, None, state, info, p.who))
    end = finish(p, method, state)
    kept = torch.zeros(1, dtype=torch.long) if end.kept is None else end.kept
    values = evaluate_value(p, state.x)
    reward = [values[0, kept[0]].item()]
    (trace,) = recorder(Drawn(tuple(p.who), torch.zeros(1, 3, 4, 4), reward, {}, Counts(), kept, values))
    return trace, state.x


def hold_to_the_marks(trace, x):
    mark = int(x[0, trace.kept, 2:].argmax())
    assert [j for at, j in trace.ancestry() if at == 0] == [mark]
    assert len(trace.ancestry()) == len(trace.looks)


@pytest.mark.parametrize("name", MARKED)
def test_ancestors_of_every_method_are_those_whose_mark_the_picture_carries(mixture, name):
    """A mark is 1000 in a coordinate of its own: it tells of which x_T a picture is."""
    trace, x = traced(mixture, METHODS[name]().build(STEPS))
    hold_to_the_marks(trace, x)
    if METHODS[name]().build(STEPS).select is not None:
        assert trace.parents() and all(1 <= look.ess <= look.count + 1e-9 for look in trace.looks if look.ess)


def test_particles_of_several_numbers_are_followed_through(mixture):
    preset = tl.presets.codex(schedule=(2, 5, 3), block=1, gradient_block=1, window=(1.0, 0.0))
    trace, x = traced(mixture, preset.build(STEPS))
    assert {look.count for look in trace.looks} == {2, 5, 3}
    hold_to_the_marks(trace, x)


@pytest.mark.parametrize("name", KEEPING)
def test_what_keeps_the_best_of_its_looks_says_which(mixture, name):
    trace, _ = traced(mixture, METHODS[name]().build(STEPS), eta=0.0)
    last, rewards = len(trace.looks) - 1, trace.rewards()
    (node,) = trace.looks[last].origins
    assert rewards[node] == rewards[last, 0] == max(value for (at, _), value in rewards.items() if at < last)


def test_a_rollover_is_one_particle(mixture):
    trace, _ = traced(mixture, METHODS["rbf"]().build(STEPS))
    assert len(trace.looks) == STEPS and len(trace.ancestry()) == STEPS  # there is no look at the last draw but at x_0


def test_a_run_without_a_trace_gets_one_and_goes_on_with_one(runs, tmp_path):
    """`--only` gives one to that image alone; the whole run to the others, whose pictures come out as they were."""
    shutil.copytree(runs / "plain", tmp_path / "run")
    words = [*WORDS, "--images", "2", "--batch-size", "3", "--quiet", "--out", str(tmp_path / "run"), "--trace"]
    assert main([*words, "--only", "0:1"]) == 0
    assert [record.get("kept") is None for record in manifest(tmp_path / "run")["images"]] == [True, False]
    assert main(words) == 0
    assert [record["parents"] for record in manifest(tmp_path / "run")["images"]] == [
        record["parents"] for record in manifest(runs / "traced")["images"]
    ]
    for file in ("images/00000.png", "images/00001.png", "trace/00000.json", "trace/00001.webp", "trace.html"):
        assert (tmp_path / "run" / file).read_bytes() == (runs / "traced" / file).read_bytes()


def test_a_picture_now_and_then_leaves_the_lineage_whole(runs, tmp_path):
    words = [*WORDS, "--quiet", "--trace", "--out", str(tmp_path / "run")]
    assert main([*words, "--trace-every", "3"]) == 0
    few, all_ = read_trace(tmp_path / "run", 0), read_trace(runs / "traced", 0)
    assert few.parents() == all_.parents() and few.ancestry() == all_.ancestry()
    assert few.shown() == [0, 3, 4] and all_.shown() == [0, 1, 2, 3, 4]
    by_hand = {(a, b) for b in [(3, 0), (3, 1), (3, 2)] for a in few._back(b) if a[0] == 0}
    assert {edge for edge in few.edges(few.shown()) if edge[1][0] == 3} == by_hand
    assert len(few.sheet) < len(all_.sheet)


class Reader(HTMLParser):
    """What a page of a trace fetches, and what it shows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.labels = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.sources += [found[key] for key in ("src", "href") if key in found]
        self.labels += [found["aria-label"]] if "aria-label" in found else []


def test_the_page_shows_every_look_and_fetches_nothing(runs):
    text = (runs / "traced" / "trace.html").read_text()
    read = Reader(text)
    assert not read.sources and not re.search(r"url\((?!data:)", text) and "http" not in text
    for number in range(2):
        trace = read_trace(runs / "traced", number)
        for at, look in enumerate(trace.looks):
            step = "x\u2080" if at == 4 else look.step
            assert sum(label.startswith(f"particle 1 at {step},") for label in read.labels) == 2
    assert sum("the picture" in label for label in read.labels) == 2
    with Image.open(runs / "traced" / "trace.png") as picture:
        assert picture.format == "PNG" and picture.width > 500


def test_a_prompt_is_text_in_the_page():
    """And a live trace, of which nothing is lit, is a page too."""
    looks = (Look(1, 1, values=(0.5,), first=0), Look(2, 1, ((0, 0),), first=1))
    trace = Trace("</script><script>alert(1)</script><img src=x>", 0, 0, "base", 2, looks, None, (4, 4), 2, 1, blank(8, 4))
    read = Reader(page([trace]))
    assert read.tags.count("script") == 2 and "img" not in read.tags and not trace.ancestry()
    assert figure(trace).startswith(b"\x89PNG")


def blank(w, h):
    buffer = io.BytesIO()
    Image.new("RGB", (w, h)).save(buffer, "webp")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["looks"][1]["origins"].pop(),
        lambda told: told["looks"][1].update(origins=[[0, 9]] * 3),
        lambda told: told["looks"][1].update(origins=[[1, 0]] * 3),
        lambda told: told["looks"][2].update(count="many"),
        lambda told: told.update(kept=7),
        lambda told: told.update(looks=[]),
        lambda told: told.update(columns=0),
        lambda told: told.update(more=1),
    ],
)
def test_a_trace_that_does_not_fit_together_is_refused_by_its_name(runs, tmp_path, capsys, change):
    shutil.copytree(runs / "traced", tmp_path / "run")
    file = tmp_path / "run" / TRACE_TOLD.format(1)
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))
    words = [*WORDS, "--images", "2", "--batch-size", "3", "--quiet", "--out", str(tmp_path / "run"), "--trace"]
    assert "00001.json" in refused(capsys, *words)


def darkness(images, prompts):
    return -images.flatten(1).mean(1)


@pytest.mark.parametrize("name", ["sd15_inpaint9", "flux", "wan"])
def test_a_pipeline_that_is_entered_draws_what_it_draws_without_a_trace(name):
    """Its call is left and entered again: a decode between two changes nothing; of a video its middle is shown."""
    pipe, told = make(name)
    told.pop("negative_prompt", "")
    model, drawn = Pipeline(pipe, name, 2, inputs=told), []
    for listen in (False, True):
        plan = tl.plan(model, tl.identities(["a fox"], 0, 1), tl.presets.code(particles=2, block=1), darkness, steps=2)
        recorder, traces = Recorder(model, plan), []
        for event in tl.draw(model, plan):
            traces += recorder(event) if listen else []
            drawn += [event.images] if isinstance(event, Drawn) else []
    assert torch.equal(*drawn)
    end = drawn[0][0, drawn[0].shape[1] // 2] if drawn[0].dim() == 5 else drawn[0][0]
    with Image.open(io.BytesIO(traces[0].sheet)) as sheet:
        k, (w, h) = traces[0].looks[-1].first + traces[0].kept, traces[0].side
        assert (w, h) == (end.shape[2], end.shape[1])
        cell = sheet.convert("RGB").crop((k % traces[0].columns * w, 0, k % traces[0].columns * w + w, h))
    shown = torch.frombuffer(bytearray(cell.tobytes()), dtype=torch.uint8).reshape(h, w, 3).permute(2, 0, 1) / 255
    assert (shown - end).abs().mean() < 0.1  # a picture of noise loses that much in a WEBP


@pytest.mark.slow
def test_codex_of_four_particles_and_25_steps_takes_two_megabytes_at_most(tmp_path):
    out = str(tmp_path / "run")
    assert (
        main(
            ["generate", "a fox", "--method", "codex", "--particles", "4", "--steps", "25", "--trace", "--quiet", "--out", out]
        )
        == 0
    )
    assert (tmp_path / "run" / "trace.html").stat().st_size <= 2_000_000


@pytest.mark.parametrize(("side", "ticks", "n"), [(64, 25, 4), (1024, 50, 4), (512, 1000, 40)])
def test_pictures_are_made_as_small_as_keeps_all_of_them_within_bounds(side, ticks, n):
    plan = SimpleNamespace(ticks=ticks)
    thumbs = Recorder(None, plan)._thumbs(torch.rand(1, 3, side, side), n)
    assert thumbs.shape[1] == min(side, thumbs.shape[1]) and thumbs.shape[1] <= 128
    assert n * (ticks + 1) * thumbs.shape[1] ** 2 <= max(MOST_PIXELS, n * (ticks + 1) * 16**2)
    assert side > 64 or thumbs.shape[1] == 64
