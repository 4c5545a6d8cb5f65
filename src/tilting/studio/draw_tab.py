"""Draw: a request, what it will cost, what happens while it is drawn, the pictures, and the same request elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from tilting.config.auto import AUTO
from tilting.config.generate import GenerateConfig
from tilting.declare import paragraphs
from tilting.errors import TiltingError
from tilting.models.names import MODELS
from tilting.presets import METHODS
from tilting.studio import forms, show
from tilting.studio.forms import Entry
from tilting.studio.same import command_line, python_of, words_of, yaml_of

if TYPE_CHECKING:
    from tilting.studio.page import Studio

MAIN = ("steps", "images", "seed")
MORE = """cfg eta sde negative-prompt batch-size strength input height width frames controlnet ip-adapter mask lora lora-steps
device precision long-prompts trace""".split()  # noqa: SIM905
BEST = "The method that gained most for as much, by the table of `tilting recipe auto-table`; it is told before the start."
LIVE = 0.1
"""Seconds between two pictures of what happens."""


class Watched:
    """What has happened in a drawing so far, as the page shows it.

    Args:
        wanted: images in all.
    """

    def __init__(self, wanted: int):
        self.wanted, self.begun = wanted, time.monotonic()
        self.means: list[tuple[float, float]] = []
        self.each: dict[tuple[int, int], list[tuple[float, float]]] = {}
        self.events: list[tuple[int, int, Sequence[int], Sequence[float] | None]] = []
        self.strip, self.trace, self.records, self.now = "", "", [], (0, 1, 0, 1)
        self.summary: dict[str, Any] = {}

    def add(self, answer: dict[str, Any]) -> None:
        """An answer of the worker."""
        self.records += answer.get("drawn", [])
        self.summary = answer.get("summary", self.summary)
        self.trace = answer.get("trace", self.trace)
        if "step" not in answer:
            return
        step, group = answer["step"], answer["group"]
        if group != self.now[2]:
            self.means, self.each = [], {}
        self.now = step, answer["steps"], group, answer["groups"]
        values, parents = answer["values"], answer["parents"]
        if values is not None:
            every = [value for row in values for value in row]
            self.means.append((step, sum(every) / len(every)))
        for image, row in enumerate(values or ()):
            for place, value in enumerate(row):
                self.each.setdefault((image, place), []).append((step, value))
        for image, row in enumerate(parents or ()):
            self.events.append((step, image, row, None if values is None else values[image]))
        if "seen" in answer:
            self.strip = show.particles(answer["seen"], answer)

    @property
    def status(self) -> str:
        """Where it is, for people."""
        step, steps, group, groups = self.now
        spent = time.monotonic() - self.begun
        if self.summary:
            paid = f"{self.summary['evaluations']} evaluations, {self.summary['seconds']:.1f} s"
            return f"{len(self.records)} of {self.wanted} pictures drawn, {paid}."
        if not step and not group:
            return "Loading; the first picture of a model takes longest."
        part = (group + step / steps) / groups
        of = f", group {group + 1} of {groups}" if groups > 1 else ""
        return f"Step {step} of {steps}{of}; about {spent * (1 - part) / part:.0f} s left."

    def html(self) -> tuple[Any, ...]:
        """Status, what happens, the pictures, and how they came about where that is news."""
        trace, self.trace = self.trace, ""
        curve = show.curve("reward of the estimates", self.means, self.now[1], list(self.each.values())[:16])
        live = f'<div class="curves">{curve}<div>{show.selections(self.events)}</div></div>' if curve else ""
        news = show.inside(trace, "how the pictures came about") if trace else gr.skip()
        return show.note(self.status), self.strip + live, show.pictures(self.records), news


def draw_tab(studio: Studio) -> None:
    """Build the tab."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            how: dict[str, Any] = {"interactive": True, "label": "prompts", "info": "One a line; see `tilting models pocket`."}
            prompts = gr.Textbox("a fox", lines=2, **how)
            how = {"interactive": True, "label": "model", "info": "pocket, a folder, or a hub id."}
            model = gr.Dropdown(list(MODELS), value="pocket", allow_custom_value=True, **how)
            rewards = forms.rewards()
            method = gr.Dropdown(
                [*METHODS, AUTO],
                value="codex",
                label="method",
                info="How pictures are steered; its own settings are below.",
                elem_id="draw-method",
            )
            main = forms.options(GenerateConfig, MAIN, "draw-")

            @gr.render(inputs=[method, rewards], queue=False)
            def own(chosen: str, specs: Sequence[str]) -> None:
                go = gr.Button("Draw", variant="primary", elem_id="draw-go", key="go")
                with gr.Accordion(f"Settings of {chosen}, and weights", open=True):
                    gr.Markdown(BEST if chosen == AUTO else f"{paragraphs(METHODS[chosen])[0]} — {METHODS[chosen].paper}")
                    weighed = forms.weights([spec for spec in specs or [] if "=" not in spec], "draw ")
                    entries = [*main, *more, *own_settings(chosen)]
                parts: list[Any] = [
                    prompts,
                    model,
                    start,
                    *(one for _, one in weighed),
                    *(entry.component for entry in entries),
                ]

                def options(values: Sequence[Any]) -> dict[str, Any]:
                    text, named, picture, *rest = values
                    weight = {spec: value for (spec, _), value in zip(weighed, rest, strict=False)}
                    return asked_of(
                        studio, text, named, forms.weighed(specs or [], weight), chosen, picture, entries, rest[len(weighed) :]
                    )

                def look(*values: Any) -> tuple[Any, ...]:
                    """Cost and words of what is asked for; a timer looks again while the worker cannot say."""
                    try:
                        wanted = options(values)
                        GenerateConfig.resolve(wanted)
                        cost = studio.cost("generate", wanted)
                        said = cost or show.note("The cost is told when the worker is free.")
                        return said, *told(wanted), gr.Timer(active=not cost)
                    except (TiltingError, OSError) as error:
                        said = show.note(forms.sentence(error) or str(error), alert=True)
                        return said, "", "", "", gr.Timer(active=False)

                @forms.told
                def draw(*values: Any) -> Iterator[tuple[Any, ...]]:
                    wanted = options(values)
                    yield from drawn(studio, "generate", wanted)

                again = gr.Timer(1)
                outputs: list[Any] = [estimate, *texts, again]
                for part in parts:
                    part.change(look, parts, outputs, trigger_mode="always_last", **forms.ASIDE)
                again.tick(look, parts, outputs, **forms.ASIDE)
                go.click(draw, parts, [*pictured, last], concurrency_id="worker", concurrency_limit=1, show_progress="hidden")

            with gr.Accordion("A picture to start from, and more options", open=False):
                how = {"interactive": True, "label": "picture to start from", "sources": ["upload"], "height": 160}
                start = gr.Image(type="filepath", **how)
                more = forms.options(GenerateConfig, MORE, "draw-")
        with gr.Column(scale=2, min_width=320):
            estimate = gr.HTML(show.note("…"), elem_id="draw-cost")
            stop = gr.Button("Stop", elem_id="draw-stop")
            status = gr.HTML("", elem_id="draw-status")
            pictures = gr.HTML("", elem_id="draw-pictures")
            live = gr.HTML("", elem_id="draw-live")
            trace = gr.HTML("", elem_id="draw-trace")
            name = gr.Textbox("", label="save to the folder", info="In the workspace; empty takes the next draw-N.")
            save = gr.Button("Save", elem_id="draw-save")
            saved = gr.HTML("", elem_id="draw-saved")
            with gr.Accordion("The same as a command, YAML or Python", open=True):
                command = forms.copied("command", "draw-command")
                yaml = forms.copied("YAML", "draw-yaml")
                python = forms.copied("Python", "draw-python")

    last = gr.JSON({}, **forms.HIDDEN)
    texts, pictured = [command, yaml, python], [status, live, pictures, trace]

    def told(options: dict[str, Any]) -> tuple[str, str, str]:
        return command_line(words_of("generate", GenerateConfig, options)), yaml_of(options), python_of(options)

    stop.click(lambda: studio.resident.stop(), **forms.ASIDE)

    @forms.told
    def keep(folder: str, wanted: dict[str, Any]) -> str:
        return studio.save(folder, "generate", GenerateConfig, wanted, "draw")

    save.click(keep, [name, last], saved, concurrency_id="worker", show_progress="hidden")


def own_settings(method: str) -> list[Entry]:
    """Components of what a method is set by: of auto its budget."""
    if method == AUTO:
        return forms.options(GenerateConfig, ("budget",), "draw-", budget="100")
    return forms.settings(METHODS[method], method)


def asked_of(
    studio: Studio,
    text: str,
    model: str,
    rewards: Sequence[str],
    method: str,
    picture: str | None,
    entries: Sequence[Entry],
    values: Sequence[Any],
) -> dict[str, Any]:
    """What a form asks for, by option name, checked against the workspace. Raises TiltingError."""
    prompts = forms.lines(text)
    if not prompts:
        raise TiltingError("say what to draw: there is no prompt")
    wanted: dict[str, Any] = {"prompts": prompts}
    wanted |= {} if model == "pocket" else {"model": model}
    wanted |= {"reward": list(rewards)} if rewards else {}
    wanted |= {} if method == "base" else {"method": method}
    wanted |= forms.asked(entries, values)
    wanted |= {} if picture is None else {"image": studio.workspace.keep([picture])}
    studio.workspace.check(wanted)
    return wanted


def drawn(studio: Studio, command: str, wanted: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """What the page shows while a request is drawn: status, what happens, pictures, and the request once it is whole."""
    seen = Watched(len(wanted.get("prompts", ())) * int(wanted.get("images", 1)))
    yield (*seen.html(), {})
    shown = 0.0
    for answer in studio.resident.ask("draw", command=command, asked=wanted):
        if "stopped" in answer:
            yield (show.note("Stopped."), *seen.html()[1:], {})
            return
        seen.add(answer)
        if time.monotonic() - shown > LIVE or "drawn" in answer:
            shown = time.monotonic()
            yield (*seen.html(), {})
    yield (*seen.html(), wanted)
