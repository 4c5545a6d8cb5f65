"""Compare: methods side by side on the same noise, as their pictures come, and then the page of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from tilting.config.compare import DEFAULT, CompareConfig
from tilting.presets import METHODS
from tilting.reports.charts import number
from tilting.runs.files import IMAGES, read_lines
from tilting.runs.owner import COMPARISON
from tilting.studio import forms, show
from tilting.studio.follow import follow

if TYPE_CHECKING:
    from tilting.studio.page import Studio

MAIN = ("steps", "images", "seed")
MORE = "model particles cfg eta sweep set lora device precision".split()  # noqa: SIM905
MOST = 8
"""Pictures of a method that are shown while they come."""


def compared(studio: Studio) -> list[str]:
    """Folders of comparisons, begun ones too."""
    found = [run.name for run in studio.workspace.runs()]
    kinds = {run.name for run in studio.workspace.runs() if run.kind == COMPARISON.what}
    begun = [str(Path(name).parent.parent) for name in found if Path(name).parent.name == "runs"]
    return [name for name in dict.fromkeys([*begun, *(name for name in found if name in kinds)]) if name != "."]


def live(root: Path, folder: Path) -> str:
    """What is drawn so far, a row of pictures for each method; the page, once it is there."""
    name, rows = folder.relative_to(root).as_posix(), []
    if (folder / "compare.html").is_file():
        return show.frame(f"{name}/compare.html", f"comparison {name}")
    for run in sorted((folder / "runs").iterdir()) if (folder / "runs").is_dir() else ():
        cells = []
        for record in read_lines(run / IMAGES)[:MOST]:
            source = show.link(f"{name}/runs/{run.name}/{record['file']}")
            said = ", ".join(f"{key} {number(record[key])}" for key in ("reward", "judge") if record.get(key) is not None)
            cells.append(show.picture(source, f"{run.name}, {record['prompt']}, image {record['index']}, {said}", said))
        rows.append(f'<h3>{escape(run.name)}</h3><div class="strip">{"".join(cells)}</div>')
    return "".join(rows) or show.note("Nothing is drawn yet.")


def compare_tab(studio: Studio) -> None:
    """Build the tab."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            prompts = gr.Textbox("a fox", lines=2, label="prompts", info="One a line; the same noise for every method.")
            methods = gr.Dropdown(
                list(METHODS),
                value=list(DEFAULT),
                multiselect=True,
                allow_custom_value=True,
                label="methods",
                info=CompareConfig.options()["methods"].about,
                elem_id="compare-methods",
            )
            rewards = forms.rewards()
            main = forms.options(CompareConfig, MAIN, "compare-")
            with gr.Accordion("More options", open=False):
                more = forms.options(CompareConfig, [name for name in MORE if name in CompareConfig.options()], "compare-")
            out = gr.Textbox("", label="folder", info="In the workspace; empty takes the next compare-N.")
            go = gr.Button("Compare", variant="primary", elem_id="compare-go")
            with gr.Accordion("The same as a command or YAML", open=False):
                command = forms.copied("command")
                yaml = forms.copied("YAML")
        with gr.Column(scale=2, min_width=320):
            watched, status = follow(
                studio, "compare", "comparison", lambda: compared(studio), lambda folder: (live(studio.workspace.root, folder),)
            )

    entries = [*main, *more]

    @forms.told
    def start(text: str, columns: Sequence[str], specs: Sequence[str], name: str, *values: Any) -> tuple[Any, ...]:
        wanted = {"prompts": forms.lines(text), "methods": list(columns or [])} | forms.asked(entries, values)
        wanted |= {"reward": list(specs)} if specs else {}
        return studio.queue("compare", CompareConfig, wanted, name, "compare")

    go.click(
        start,
        [prompts, methods, rewards, out, *(entry.component for entry in entries)],
        [watched, status, command, yaml],
        show_progress="hidden",
    )
