"""Runs: every run's folder in the workspace, its page, its command, the queue, and two of them judged side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import yaml

from tilting.config.evaluate import EvaluateConfig
from tilting.errors import TiltingError
from tilting.runs.owner import RUN
from tilting.studio import follow, forms, show
from tilting.studio.same import command_line, words_of
from tilting.studio.workspace import PAGES, SHOWN, manifest_of, run_of

if TYPE_CHECKING:
    from tilting.studio.page import Studio


def command_of(manifest: dict[str, Any]) -> str:
    """The command that a folder was made by, if it says."""
    words = manifest.get("argv") or []
    return command_line([str(word) for word in words[1:]]) if words and words[0] == "tilting" else " ".join(map(str, words))


def shown_of(studio: Studio, name: str) -> str:
    """A run's pictures and pages as HTML. Raises TiltingError."""
    folder = studio.workspace.file(name)
    pages = [show.frame(f"{name}/{page}", f"{page} of {name}") for page in PAGES if (folder / page).is_file()]
    found = [folder / one for one in SHOWN if (folder / one).is_file()]
    found += sorted((folder / "samples").glob("*.png"))[-1:]
    pictures = [
        show.picture(
            show.link(path.relative_to(studio.workspace.root).as_posix()), f"{path.name} of {name}", path.name, "shown"
        )
        for path in found
    ]
    run = run_of(studio.workspace.root, folder)
    head = show.note("; ".join(one for one in run[1:4] if one) if run else "It cannot be read.")
    return "".join([head, *pictures, *pages])


def runs_tab(studio: Studio) -> None:
    """Build the tab."""

    def rows() -> tuple[str, Any, Any, Any]:
        runs = studio.workspace.runs()
        names, drawn = [run.name for run in runs], [run.name for run in runs if run.kind == RUN.what]
        listed = show.table(
            ("folder", "what", "of", "result"), [run[:4] for run in runs], "runs of this workspace, the newest first"
        )
        return listed or show.note("There is no run yet."), gr.Dropdown(names), gr.Dropdown(drawn), gr.Dropdown(drawn)

    def queue() -> tuple[str, Any]:
        jobs = sorted(studio.jobs.all.values(), key=lambda job: -job.number)[:12]
        cells = [
            (str(job.number), studio.jobs.state(job), command_line(job.words), studio.jobs.said(job)[:160]) for job in jobs
        ]
        return show.table(("job", "state", "command", "its last line"), cells, "commands, the newest first"), [
            str(job.number) for job in jobs
        ]

    again = gr.Button("Look again", elem_id="runs-again")
    listed = gr.HTML("", elem_id="runs-list")
    with gr.Row():
        one = gr.Dropdown(
            [], label="open a run", info="Its pictures and pages, and the command that made it.", elem_id="runs-open"
        )
    page = gr.HTML("", elem_id="runs-page")
    command = forms.copied("its command", "runs-command")
    with gr.Accordion("Its config as YAML", open=False):
        config = forms.copied("YAML")
    gr.Markdown("## Evaluate two runs")
    with gr.Row():
        first, second = (gr.Dropdown([], label=f"{word} run", elem_id=f"runs-{word}") for word in ("first", "second"))
        judge = gr.Button("Evaluate", elem_id="runs-evaluate")
    gr.Markdown("## Commands")
    jobs = gr.HTML("", elem_id="runs-jobs")
    with gr.Row():
        number = gr.Dropdown(
            [], label="job", info="One that runs is stopped after its step, and saved; one that was stopped goes on."
        )
        stop, resume = gr.Button("Stop the job"), gr.Button("Go on with the job")

    outputs = [listed, one, first, second]
    again.click(rows, None, outputs, **forms.ASIDE)
    studio.blocks.load(rows, None, outputs, **forms.ASIDE)

    def jobs_now() -> tuple[str, Any]:
        table, numbers = queue()
        return table or show.note("No command was started from here yet."), gr.Dropdown(numbers)

    timer = gr.Timer(2)
    timer.tick(jobs_now, None, [jobs, number], **forms.ASIDE)

    @forms.told
    def opened(name: str | None) -> tuple[str, str, str]:
        if not name:
            return "", "", ""
        manifest = manifest_of(studio.workspace.file(name))
        text = yaml.safe_dump(manifest.get("config") or {}, sort_keys=False, allow_unicode=True)
        return shown_of(studio, name), command_of(manifest), text

    one.change(opened, one, [page, command, config], show_progress="hidden")

    @forms.told
    def evaluate(a: str | None, b: str | None) -> tuple[str, Any]:
        if not a or not b or a == b:
            raise TiltingError("choose two different runs of pictures")
        out = studio.workspace.fresh(f"{Path(a).name}-vs-{Path(b).name}")
        wanted = {"runs": [a, b], "out": out}
        EvaluateConfig.resolve(wanted)
        studio.jobs.add(words_of("evaluate", EvaluateConfig, wanted), out)
        return jobs_now()

    judge.click(evaluate, [first, second], [jobs, number], show_progress="hidden")

    @forms.told
    def ended(chosen: str | None) -> tuple[str, Any]:
        studio.jobs.stop(_number(chosen))
        return jobs_now()

    @forms.told
    def resumed(chosen: str | None) -> tuple[str, Any]:
        follow.again(studio, _number(chosen))
        return jobs_now()

    stop.click(ended, number, [jobs, number], show_progress="hidden")
    resume.click(resumed, number, [jobs, number], show_progress="hidden")


def _number(chosen: str | None) -> int:
    if not chosen:
        raise TiltingError("choose a job")
    return int(chosen)
