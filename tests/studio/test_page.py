"""The page as people use it, by a browser: every tab from its first button to what comes out, on pocket. One server for all."""

from __future__ import annotations

import json
import re
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.commands import manifest
from support.studio import CHROMIUM, REACHABLE, Driven, asked, browser, studio, until
from tilting.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")]
TABS = ("Draw", "Compare", "Train", "Control", "Runs")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def driven(workspace) -> Iterator[Driven]:
    with studio(workspace) as served, browser() as chromium:
        yield Driven(served, chromium.new_page(viewport={"width": 1280, "height": 1000}))


def test_draw_with_codex(driven, workspace):
    driven.fill("draw-steps", "6")
    assert "--steps 6" in driven.has("draw-command", "--steps 6")
    cost = driven.has("draw-cost", "evaluations")
    driven.click("draw-go")
    driven.page.wait_for_selector("#draw-live .particles img")
    assert len(driven.page.query_selector_all("#draw-live .particles img")) == 4
    assert driven.has("draw-status", "1 of 1 pictures drawn")
    paid = int(driven.text("draw-status").split(" drawn, ")[1].split()[0])
    assert cost.startswith(f"{paid} evaluations")
    assert "reward" in driven.text("draw-pictures") and "judge" in driven.text("draw-pictures")
    assert "go on" in driven.text("draw-live")
    assert driven.page.frame_locator("#draw-trace iframe").locator(".film").count() == 1
    driven.click("draw-save")
    driven.has("draw-saved", "Saved to draw-1")
    told = json.loads((workspace / "draw-1" / "manifest.json").read_text())
    assert told["config"]["method"] == "codex"
    assert told["summary"]["evaluations"] == paid
    assert driven.outside == []


def test_what_cannot_be_is_a_sentence(driven):
    driven.fill("draw-steps", "0")
    assert driven.has("draw-cost", "must be at least 1")
    driven.click("draw-go")
    assert "must be at least 1" in driven.refused()
    driven.fill("draw-steps", "6")
    driven.has("draw-cost", "evaluations")


def test_a_worker_that_is_killed_is_started_again(driven):
    import psutil

    server = psutil.Process(driven.served.process.pid)
    (worker,) = [one for one in server.children() if "tilting.studio.worker" in one.cmdline()]
    driven.fill("draw-steps", "50")
    driven.click("draw-go")
    driven.has("draw-status", "Step ")  # the particles of before stay until there are others
    worker.send_signal(signal.SIGKILL)
    assert "was ended by SIGKILL: it is started again" in driven.refused()
    driven.fill("draw-steps", "2")
    driven.click("draw-go")
    driven.has("draw-status", "1 of 1 pictures drawn")


def test_compare_three(driven, workspace):
    driven.tab("Compare")
    driven.page.locator("#compare-methods [aria-label*=Remove], #compare-methods .token-remove").nth(1).click()
    driven.fill("compare-steps", "3")
    driven.click("compare-go")
    driven.has("compare-status", "Job 1 is done")
    frame = driven.page.frame_locator("#compare-live iframe")
    frame.locator("h1").first.wait_for()
    metrics = json.loads((workspace / "compare-1" / "metrics.json").read_text())
    assert [row["method"] for row in metrics["methods"]] == ["base", "code", "codex"]
    assert driven.outside == []


def test_train_and_stop_and_go_on(driven, workspace):
    driven.tab("Train")
    for name, value in (("train-steps", 40), ("steps", 3), ("batch-size", 2), ("sample-every", 5)):
        driven.fill(f"train-{name}", value)
    driven.click("train-go")
    assert "reward gradient" in driven.has("train-findings", "reward gradient")
    log = workspace / "train-1" / "metrics.jsonl"
    until(driven.page, lambda: made(driven.text("train-live")) and len(log.read_text().splitlines()) >= 5, 400)
    driven.click("train-stop")
    driven.has("train-status", "was stopped")
    lines = log.read_text().splitlines()
    until(driven.page, lambda: made(driven.text("train-live")) == len(lines))
    assert 5 <= len(lines) < 40
    assert "norm of the gradient" in driven.text("train-live") and "judge of the samples" in driven.text("train-live")
    assert driven.page.locator("#train-samples img").count() >= 2
    driven.click("train-on")
    driven.has("train-status", "is done")
    after = log.read_text().splitlines()
    assert len(after) == 40 and after[: len(lines)] == lines
    driven.choose("mix-first", "train-1")
    driven.page.get_by_label("steps", exact=True).last.fill("3")
    driven.click("mix-go")
    driven.has("mix-status", "4 of 4 pictures drawn")
    driven.tab("Draw")
    driven.click("draw-save")  # of what the worker has no longer
    assert "something else was drawn since" in driven.refused()


def made(said: str) -> int:
    """The training steps that a page tells."""
    found = re.match(r"(\d+) training steps", said)
    return int(found[1]) if found else 0


def labelled(path: Path) -> Path:
    """A zip of a table and its pictures, bright and dark ones."""
    with zipfile.ZipFile(path, "w") as archive:
        rows = ["file,bright"]
        for i in range(24):
            file = path.with_suffix(".png")
            Image.new("RGB", (64, 64), (60 + 120 * (i % 2) + i,) * 3).save(file)
            archive.write(file, f"{i}.png")
            rows.append(f"{i}.png,{'yes' if i % 2 else 'no'}")
        archive.writestr("labels.csv", "\n".join(rows))
    return path


def test_from_a_table_to_a_drawn_control(driven, workspace, tmp_path):
    driven.tab("Control")
    driven.page.locator("input[type=file]").last.set_input_files(labelled(tmp_path / "labels.zip"))
    assert "no: 12, yes: 12" in driven.has("control-seen", "no: 12")
    driven.fill("fit-epochs", 2)
    driven.click("control-fit")
    driven.has("fit-status", "is done")
    driven.has("fit-live", "reliability.png")
    for name, value in (("train-steps", 2), ("steps", 2), ("batch-size", 2)):
        driven.fill(f"control-{name}", value)
    driven.fill("control-prompts", "a cat")
    driven.click("control-train")
    driven.has("control-status", "is done")
    driven.click("label-show")
    driven.page.wait_for_selector("#label-go")
    driven.fill("label-images", 1)
    driven.fill("label-steps", 2)
    driven.click("label-go")
    driven.has("label-status", "1 of 1 pictures drawn")
    assert "asked yes" in driven.text("label-pictures")
    assert (workspace / "control-1" / "control.json").is_file()


def test_runs_are_opened_and_judged(driven, workspace):
    driven.tab("Runs")
    driven.click("runs-again")
    listed = driven.has("runs-list", "draw-1")
    assert all(name in listed for name in ("compare-1", "train-1", "fit-1", "control-1", "compare-1/runs/base"))
    driven.choose("runs-open", "draw-1")
    assert "tilting generate" in driven.has("runs-command", "--out draw-1")
    image = driven.page.locator("#runs-page img").first
    image.wait_for()
    assert until(driven.page, lambda: image.evaluate("one => one.naturalWidth")) > 0
    driven.choose("runs-first", "compare-1/runs/base")
    driven.choose("runs-second", "compare-1/runs/codex")
    driven.click("runs-evaluate")
    driven.has("runs-jobs", "evaluate")
    until(driven.page, lambda: (workspace / "base-vs-codex-1" / "report.html").is_file(), 400)
    assert driven.outside == []


def test_a_page_holds_no_connection(driven):
    """A browser has six to a server, for all tabs: one that each page held would stop them all with the sixth page."""
    until(driven.page, lambda: not driven.waiting, told=lambda: str(driven.waiting))


@pytest.mark.parametrize("tab", TABS)
def test_contrast_and_labels(driven, tab):
    from axe_playwright_python.sync_playwright import Axe

    driven.tab(tab)
    driven.page.wait_for_timeout(300)
    found = Axe().run(driven.page, options={"runOnly": ["wcag2a", "wcag2aa"]})
    said = {one["id"]: [node["html"][:200] for node in one["nodes"]] for one in found.response["violations"]}
    assert not said, json.dumps(said, indent=1)


def test_a_narrow_window_by_night(driven):
    from axe_playwright_python.sync_playwright import Axe

    driven.page.set_viewport_size({"width": 400, "height": 900})
    driven.page.emulate_media(color_scheme="dark")
    driven.tab("Draw")
    driven.page.wait_for_timeout(300)
    found = Axe().run(driven.page, options={"runOnly": ["wcag2a", "wcag2aa"]})
    wide = driven.page.evaluate("document.documentElement.scrollWidth")
    driven.page.emulate_media(color_scheme="light")
    driven.page.set_viewport_size({"width": 1280, "height": 1000})
    assert wide == 400
    assert not [one["id"] for one in found.response["violations"]]


LATE = """const plain = window.fetch;
window.fetch = async (asked, how) => {
    const answer = await plain(asked, how);
    if (!String(asked.url ?? asked).includes('queue/data')) return answer;
    const wait = async (text, out) => {
        for (const part of text.split(/(?<=\\n\\n)/)) {
            if (part.includes('"close_stream"')) await new Promise(done => setTimeout(done, 4000));
            out.enqueue(part);
        }
    };
    const slow = answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(new TransformStream({transform: wait}));
    return new Response(slow.pipeThrough(new TextEncoderStream()), answer);
};"""
"""A browser that hears late that gradio's queue has closed its stream, as on a machine that is busy."""


def test_a_late_browser_goes_on_watching(driven, workspace):
    """Gradio's queue forgets what is asked while its stream closes: a clock that asked by it stood still for ever."""
    page = driven.page.context.browser.new_page()
    page.add_init_script(LATE)
    late = Driven(driven.served, page)
    late.has("draw-cost", "evaluations", 120)  # and the clock of Draw stands
    late.tab("Compare")
    late.page.locator("#compare-watch input").first.fill("later")
    late.page.keyboard.press("Enter")
    late.has("compare-live", "there is no 'later' in the workspace", 120)
    late.page.wait_for_timeout(3000)
    (workspace / "later" / "runs").mkdir(parents=True)
    late.has("compare-live", "Nothing is drawn yet.", 120)
    (workspace / "later" / "runs").rmdir()
    (workspace / "later").rmdir()
    page.close()


def write(text):
    def do(driven):
        driven.page.keyboard.press("ControlOrMeta+a")
        driven.page.keyboard.type(text(driven) if callable(text) else text)

    return do


def enter(then):
    def do(driven):
        driven.page.keyboard.press("Enter")
        assert then(driven)

    return do


def refusal(words):
    def said(driven):
        found = driven.refused()
        assert words in found, found
        return found

    return enter(said)


def as_told(driven):
    """Drawn at the cost that was told before, by what auto was told to take."""
    cost = driven.has("draw-cost", "8 evaluations")
    return driven.has("draw-status", f"1 of 1 pictures drawn, {cost.split()[0]} evaluations")


def saved(driven):
    folder = driven.has("draw-saved", "Saved to draw-2").split()[2].rstrip(";")
    return manifest(driven.served.workspace / folder)["auto"]["budget"] == "8"


def labels(driven):
    return next(driven.served.workspace.glob("uploads/*/labels.csv")).relative_to(driven.served.workspace).as_posix()


def first(driven, where="", words=""):
    """The first of a list, once what is offered there has these words."""
    offered = driven.page.locator(f"#{where} [role=option]")
    until(driven.page, lambda: not where or (offered.count() and all(words in one for one in offered.all_inner_texts())))
    driven.page.keyboard.press("ArrowDown")
    driven.page.keyboard.press("Enter")


BY_KEYS = {
    "Draw": {
        "draw-method": lambda driven: [
            write("auto")(driven),
            first(driven, "draw-method", "auto"),
            driven.has("draw-cost", "auto: "),
        ],
        "draw-steps": write("2"),
        "draw-budget": write("8"),
        "draw-go": enter(as_told),
        "draw-save": enter(saved),
    },
    "Compare": {
        "compare-go": enter(lambda driven: driven.has("compare-status", " runs")),
        "compare-stop": enter(lambda driven: driven.has("compare-status", "was stopped")),
    },
    "Train": {"train-train-steps": write("0"), "train-go": refusal("must be at least 1")},
    "Control": {
        "control-data": write(labels),
        "fit-epochs": write("1000000"),  # so that it is at work when Stop is reached
        "fit-patience": write("1000000"),
        "control-fit": enter(lambda driven: driven.has("fit-status", " runs")),
        "fit-stop": enter(lambda driven: driven.has("fit-status", "was stopped")),
    },
    "Runs": {"runs-open": first, "runs-evaluate": refusal("choose two different runs")},
}
"""What is done on a tab where the focus comes by, by the id of what it comes to: the main things that the tab is for."""


@pytest.mark.parametrize("tab", TABS)
def test_the_keyboard_reaches_everything_and_does_it(driven, tab):
    if tab == "Runs":  # where tests before have chosen two runs, which would be evaluated
        driven.page.reload()
        driven.page.wait_for_selector("#draw-go")
    driven.page.get_by_role("tab", name=tab, exact=True).focus()
    driven.page.keyboard.press("Enter")
    doing, reached, missed = list(BY_KEYS[tab].items()), set(), [""]
    for _ in range(300):
        mark, ids = driven.next()
        missed = [html for at, html in driven.page.evaluate(REACHABLE) if at not in reached] if mark in reached else missed
        if not missed and not doing:
            break
        reached.add(mark)
        if doing and doing[0][0] in ids:
            doing.pop(0)[1](driven)
    assert not doing
    assert not missed, missed


def test_nothing_outside_is_read_and_nobody_else_asks(driven, workspace):
    at = driven.served.address
    assert asked(f"{at}runs/draw-1/grid.png")[0] == 200
    assert asked(f"{at}runs/../../etc/passwd")[0] == asked(f"{at}runs/..%2f..%2fetc/passwd")[0] == 404
    assert asked(f"{at}runs/.studio/worker.log")[0] == 404
    assert asked(f"{at}gradio_api/file=/etc/passwd")[0] in (403, 404)
    assert asked(f"{at}gradio_api/file={workspace}/draw-1/manifest.json")[0] in (403, 404)
    assert asked(at, Host="evil.example")[0] == 400
    assert asked(at, Origin="http://evil.example")[0] == 403


@pytest.mark.skipif(sys.platform != "linux", reason="no other system sets a limit of a process that runs")
def test_a_full_disk_is_a_sentence_and_with_room_it_goes_on(driven, workspace):
    """By the system's limit of a file's size, which every write of the server and of its worker meets."""
    import psutil

    server = psutil.Process(driven.served.process.pid)
    several = [server, *(one for one in server.children() if "tilting.studio.worker" in one.cmdline())]
    driven.tab("Draw")
    driven.click("draw-go")
    driven.has("draw-status", "1 of 1 pictures drawn")
    before = sorted(path.name for path in workspace.iterdir())
    for one in several:
        one.rlimit(psutil.RLIMIT_FSIZE, (10, -1))
    try:
        driven.click("draw-save")
        assert "File too large" in driven.refused()
        driven.tab("Compare")
        driven.click("compare-go")
        assert "File too large" in driven.refused()
    finally:
        for one in several:
            one.rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
    driven.tab("Draw")
    driven.click("draw-save")
    folder = driven.has("draw-saved", "Saved to draw-3").split()[2].rstrip(";")
    assert sorted(path.name for path in workspace.iterdir()) == sorted({*before, folder})
    assert (workspace / folder / "grid.png").is_file()


def test_a_port_that_is_taken_and_a_workspace_that_is_open_are_sentences(driven, workspace, tmp_path, capsys):
    port = driven.served.address.rsplit(":", 1)[1].strip("/")
    assert main(["studio", "--workspace", str(tmp_path), "--port", port]) == 2
    assert f"cannot listen at 127.0.0.1:{port} (Address already in use): give another --port" in capsys.readouterr().err
    assert main(["studio", "--workspace", str(workspace), "--port", "0"]) == 2
    assert "a studio is open already for" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_killed_studio_loses_no_run(driven, workspace):
    from tilting.studio.jobs import Jobs

    jobs = Jobs(workspace, workspace / ".studio" / "jobs")
    before = {job.number: jobs.state(job) for job in jobs.all.values()}
    driven.served.end(kill=True)
    with studio(workspace, "--token", "opensesame") as served:
        at = served.address.split("?")[0]
        assert asked(at)[0] == 401
        assert asked(f"{at}?token=opensesamE")[0] == 401
        assert asked(f"{at}config", Cookie="tilting-token=opensesame")[0] == 200
    jobs = Jobs(workspace, workspace / ".studio" / "jobs")
    assert {job.number: jobs.state(job) for job in jobs.all.values()} == before
    assert len(before) >= 6
