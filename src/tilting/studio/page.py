"""The page: its tabs, over one workspace, one worker that draws, and one queue of commands."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.themes import Default

from tilting.config.base import BaseConfig
from tilting.errors import TiltingError
from tilting.studio import show
from tilting.studio.compare_tab import compare_tab
from tilting.studio.control_tab import control_tab
from tilting.studio.draw_tab import draw_tab
from tilting.studio.jobs import Jobs
from tilting.studio.resident import Resident
from tilting.studio.runs_tab import runs_tab
from tilting.studio.same import command_line, words_of, yaml_of
from tilting.studio.train_tab import train_tab
from tilting.studio.workspace import Workspace

TABS = {"Draw": draw_tab, "Compare": compare_tab, "Train": train_tab, "Control": control_tab, "Runs": runs_tab}


@dataclass
class Studio:
    """What the tabs share.

    Attributes:
        workspace: what may be read.
        resident: the worker that draws.
        jobs: the queue of commands.
        blocks: the page itself.
    """

    workspace: Workspace
    resident: Resident
    jobs: Jobs
    blocks: Any = field(default=None)

    def cost(self, command: str, wanted: Mapping[str, Any]) -> str:
        """What a request will pay, in a line; nothing while the worker is at work. Raises TiltingError."""
        if self.resident.busy.locked():
            return ""
        found = self.resident.last("cost", command=command, asked=wanted)
        paid = (
            [f"{found['evaluations']} evaluations of the network, {found['values']} of the reward"] if "values" in found else []
        )
        paid += [] if found["seconds"] is None else [f"about {_rounded(found['seconds'])} s here"]
        return show.note(f"{', '.join(paid)}. {found['why']}".strip())

    def save(self, folder: str, command: str, config: type[BaseConfig], wanted: dict[str, Any], stem: str) -> str:
        """Write what was drawn by a request as a run's folder; a line that says where. Raises TiltingError."""
        if not wanted:
            raise TiltingError("nothing is drawn yet: draw first")
        out = folder.strip() or self.workspace.fresh(stem)
        self.workspace.check({"out": out})
        words = ["tilting", *words_of(command, config, {**wanted, "out": out})]
        self.resident.last("save", command=command, asked=wanted, out=out, words=words)
        return show.note(f"Saved to {out}; the same command finds it finished.")

    def queue(
        self, command: str, config: type[BaseConfig], wanted: dict[str, Any], folder: str, stem: str
    ) -> tuple[Any, str, str, str]:
        """Put a command into the queue.

        Returns:
            The list of watched folders with its own chosen, a line about it, and the request as a command and as YAML.

        Raises:
            TiltingError: what is asked for cannot be, or a command that is not over writes there.
        """
        out = (folder or "").strip() or self.workspace.fresh(stem)
        wanted = {**wanted, "out": out}
        self.workspace.check(wanted)
        config.resolve(wanted)
        words = words_of(command, config, wanted)
        job = self.jobs.add(words, out, str(wanted.get("device", "auto")))
        line = show.note(f"Job {job.number} {self.jobs.state(job)}.")
        return gr.Dropdown([out], value=out), line, command_line(words), yaml_of(wanted)


def _rounded(seconds: float) -> str:
    digits = max(0, -math.floor(math.log10(seconds))) if seconds > 0 else 0
    return f"{seconds:.{digits}f}"


class Page(gr.Blocks):
    """Blocks whose parts are made one after the other: those that a page makes when it opens walk over dicts that the others
    write in, on threads of their own, and then now and then one failed and its part of the page stayed empty for ever."""

    def __init__(self, **how: Any):
        super().__init__(**how)
        self._making = asyncio.Lock()

    async def process_api(self, block_fn: Any, *args: Any, **more: Any) -> dict[str, Any]:
        if block_fn.renderable is None:
            return await super().process_api(block_fn, *args, **more)
        async with self._making:
            return await super().process_api(block_fn, *args, **more)


def build(studio: Studio) -> Any:
    """The page of a studio."""
    with Page(title="tilting studio", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        studio.blocks = blocks
        gr.Markdown("# tilting studio")
        with gr.Tabs():
            for name, tab in TABS.items():
                with gr.Tab(name, id=name):
                    tab(studio)
    blocks.queue(default_concurrency_limit=8)
    return blocks


def theme() -> Any:
    """Fonts of the system alone, and text dark enough to read."""
    fonts = ["system-ui", "sans-serif"]
    made = Default(primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"])
    return made.set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
