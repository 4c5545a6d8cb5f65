"""Watching a folder while a command writes it, wherever that was started; stopping it, and going on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from tilting.errors import TiltingError
from tilting.runs.lock import locked
from tilting.studio import forms, show
from tilting.studio.jobs import Job, check_told
from tilting.studio.workspace import manifest_of

if TYPE_CHECKING:
    from tilting.studio.page import Studio

RESUME = ("generate", "compare", "finetune", "condition")
"""Commands that go on where they stopped."""
OUT = ("--out", "-o")


def doing(studio: Studio, name: str) -> str:
    """What happens in a folder, in a line of HTML."""
    job = studio.jobs.of(name)
    if job is None:
        return show.note(
            "Another process is writing here." if locked(studio.workspace.root / name) else "Nobody is writing here."
        )
    state, said = studio.jobs.state(job), studio.jobs.said(job)
    return show.note(f"Job {job.number} {state}{f': {said[-200:]}' if said else ''}", alert=state == "failed")


def again(studio: Studio, number: int) -> Job:
    """Put a job into the queue again; one of a file is checked as a folder's command is. Raises TiltingError."""
    if number not in studio.jobs.asked:
        studio.workspace.check({"its command": studio.jobs.find(number).words})
    return studio.jobs.again(number)


def go_on(studio: Studio, name: str) -> Job:
    """Put a folder's command into the queue again: that of its job, or the one that its manifest tells. Raises TiltingError."""
    job = studio.jobs.of(name)
    if job is not None:
        return again(studio, job.number)
    words = [str(word) for word in manifest_of(studio.workspace.file(name)).get("argv") or []][1:]
    if not words or words[0] not in RESUME:
        raise TiltingError(f"{name!r} does not say by which command it was made")
    words = [name if i and words[i - 1] in OUT else word for i, word in enumerate(words)]
    words = [f"--out={name}" if word.startswith("--out=") else word for word in words]
    check_told(repr(name), words)
    studio.workspace.check({"its command": words})
    return studio.jobs.add(words, name)


def follow(
    studio: Studio,
    prefix: str,
    label: str,
    names: Callable[[], Sequence[str]],
    live: Callable[[Path], tuple[Any, ...]],
    more: Sequence[Any] = (),
) -> tuple[Any, Any]:
    """A list of folders, what happens in the one chosen, and buttons to stop it and to go on.

    Args:
        studio: whose workspace it is.
        prefix: of the components' ids.
        label: of the list.
        names: the folders, the newest first.
        live: of a folder its HTML, and what ``more`` components show.
        more: components that it fills.

    Returns:
        The list and the line of what happens, for a handler that has put a command into the queue.
    """
    chosen = gr.Dropdown(
        [], label=label, info="Whoever started it, here or in a terminal.", allow_custom_value=True, elem_id=f"{prefix}-watch"
    )
    status = gr.HTML("", elem_id=f"{prefix}-status")
    with gr.Row():
        stop, resume = (
            gr.Button("Stop, and keep what is made", elem_id=f"{prefix}-stop"),
            gr.Button("Go on", elem_id=f"{prefix}-on"),
        )
    html = gr.HTML("", elem_id=f"{prefix}-live")
    mark = gr.Textbox("", **forms.HIDDEN)

    def now(name: str | None, seen: str) -> tuple[Any, ...]:
        if not name:
            return tuple(gr.skip() for _ in range(3 + len(more)))
        told = doing(studio, name)
        try:
            shown = live(studio.workspace.file(name))
        except TiltingError as error:
            shown = (show.note(str(error)), *(None for _ in more))
        fresh = sha256(repr((name, told, shown)).encode()).hexdigest()
        if fresh == seen:
            return tuple(gr.skip() for _ in range(3 + len(more)))
        return (told, fresh, *shown)

    @forms.told
    def ended(name: str | None) -> str:
        job = studio.jobs.of(name or "")
        if job is None or job.over:
            raise TiltingError(f"no command of this page is at work in {name!r}: end it where it was started")
        studio.jobs.stop(job.number)
        return doing(studio, str(name))

    @forms.told
    def resumed(name: str | None) -> str:
        if not name:
            raise TiltingError("choose a folder")
        go_on(studio, name)
        return doing(studio, name)

    outputs = [status, mark, html, *more]
    gr.Timer(1).tick(now, [chosen, mark], outputs, **forms.ASIDE)
    chosen.change(now, [chosen, mark], outputs, **forms.ASIDE)
    chosen.focus(lambda: gr.Dropdown(list(names())), None, chosen, **forms.ASIDE)
    stop.click(ended, chosen, status, show_progress="hidden")
    resume.click(resumed, chosen, status, show_progress="hidden")
    return chosen, status
