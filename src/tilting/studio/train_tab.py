"""Train: what doctor finds, then a LoRA as it learns, samples before and after, and what its scale or a mix of two draws."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from tilting.config.finetune import FinetuneConfig
from tilting.config.generate import GenerateConfig
from tilting.declare import paragraphs
from tilting.errors import TiltingError
from tilting.objectives import OBJECTIVES
from tilting.studio import forms, show
from tilting.studio.draw_tab import drawn
from tilting.studio.follow import follow
from tilting.studio.same import words_of
from tilting.training.folder import METRICS, read_lines

if TYPE_CHECKING:
    from tilting.studio.page import Studio

MAIN = ("train-steps", "steps", "batch-size", "lr", "rank", "sample-every", "seed")
MORE = """model cfg eta negative-prompt accumulate lora-alpha target-modules weight-decay clip schedule warmup ema init-lora
judge early-stop sample-images checkpoint-every keep-every diversity reward-dropout device precision""".split()  # noqa: SIM905
CURVES = {
    "reward": "reward of the batch",
    "judge": "judge of the samples",
    "sample_reward": "reward of the samples",
    "kl": "KL of the path",
    "kl_open": "KL of open steps",
    "kl_step": "KL of a step",
    "gradient_norm": "norm of the gradient",
    "log_prob": "log p of the labels",
}
LONGEST = 600
"""Seconds that doctor may take."""


def trained(studio: Studio, control: bool = False) -> list[str]:
    """Folders of training: of LoRAs, or of controls."""
    return [run.name for run in studio.workspace.runs() if run.kind == ("a control" if control else "training")]


def curves_of(folder: Path) -> str:
    """What a training run has written so far, as curves."""
    rows = read_lines(folder / METRICS)
    last = max((row["step"] for row in rows), default=0)
    return show.note(f"{last} training steps.") + show.curves(CURVES, rows)


def live(root: Path, folder: Path) -> tuple[str, str]:
    """Curves, and the first and the last samples."""
    samples = [show.link(path.relative_to(root).as_posix()) for path in sorted((folder / "samples").glob("*.png"))]
    return curves_of(folder), show.before_after(samples[0], samples[-1], "samples") if samples else ""


def examined(studio: Studio, words: Sequence[str]) -> list[str]:
    """What doctor says of a run, line by line. Raises TiltingError with its sentence where a check fails."""
    command = [sys.executable, "-m", "tilting", "doctor", *words[1:]]
    try:
        done = subprocess.run(command, cwd=studio.workspace.root, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        raise TiltingError(f"doctor took more than {LONGEST} s: look at the run in a terminal") from None
    said = [line for line in done.stderr.splitlines() if line.startswith("tilting: ") and "warning" not in line]
    if done.returncode:
        raise TiltingError(said[-1].removeprefix("tilting: ") if said else f"doctor ended with code {done.returncode}")
    return done.stdout.splitlines()


def train_tab(studio: Studio) -> None:
    """Build the tab."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            prompts = gr.Textbox("a horse\na fox", lines=2, interactive=True, label="prompts", info="One a line, to train on.")
            rewards = forms.rewards()
            objective = gr.Dropdown(
                list(OBJECTIVES),
                value="draft-lv",
                label="objective",
                info="What is minimised; its own settings are below.",
                elem_id="train-objective",
            )
            main = forms.options(FinetuneConfig, MAIN, "train-")
            with gr.Accordion("More options", open=False):
                more = forms.options(FinetuneConfig, MORE, "train-")
            out = gr.Textbox("", interactive=True, label="folder", info="In the workspace; empty takes the next train-N.")

            @gr.render(inputs=[objective, rewards], queue=False)
            def own(chosen: str, specs: Sequence[str]) -> None:
                doctor = gr.Button("Look first (doctor)", elem_id="train-doctor", key="doctor")
                go = gr.Button("Train", variant="primary", elem_id="train-go", key="go")
                with gr.Accordion(f"Settings of {chosen}, and weights", open=False):
                    gr.Markdown(f"{paragraphs(OBJECTIVES[chosen])[0]} — {OBJECTIVES[chosen].paper}")
                    weighed = forms.weights([spec for spec in specs or [] if "=" not in spec], "train ")
                    entries = [*main, *more, *forms.settings(OBJECTIVES[chosen], chosen)]
                parts: list[Any] = [prompts, out, *(one for _, one in weighed), *(entry.component for entry in entries)]

                def asked(text: str, values: Sequence[Any]) -> dict[str, Any]:
                    weight = {spec: value for (spec, _), value in zip(weighed, values, strict=False)}
                    wanted: dict[str, Any] = {"prompts": forms.lines(text)}
                    wanted |= {"reward": forms.weighed(specs, weight)} if specs else {}
                    wanted |= {} if chosen == "draft-lv" else {"objective": chosen}
                    wanted |= forms.asked(entries, values[len(weighed) :])
                    studio.workspace.check(wanted)
                    FinetuneConfig.resolve(wanted)
                    return wanted

                @forms.told
                def look(text: str, name: str, *values: Any) -> Iterator[str]:
                    wanted = asked(text, values)
                    yield show.note("Doctor is looking …")
                    yield _listed(examined(studio, words_of("finetune", FinetuneConfig, wanted)))

                @forms.told
                def start(text: str, name: str, *values: Any) -> Iterator[tuple[Any, ...]]:
                    wanted = asked(text, values)
                    same = [gr.skip() for _ in range(4)]
                    yield show.note("Doctor is looking …"), *same
                    found = _listed(examined(studio, words_of("finetune", FinetuneConfig, wanted)))
                    yield found, *same
                    yield found, *studio.queue("finetune", FinetuneConfig, wanted, name, "train")

                doctor.click(look, parts, findings, show_progress="hidden")
                go.click(start, parts, [findings, watched, status, command, yaml], show_progress="hidden")

        with gr.Column(scale=2, min_width=320):
            findings = gr.HTML("", elem_id="train-findings")
            samples = gr.HTML("", render=False, elem_id="train-samples")
            shown = partial(live, studio.workspace.root)
            watched, status = follow(studio, "train", "training run", lambda: trained(studio), shown, [samples])
            samples.render()
            with gr.Accordion("The same as a command or YAML", open=False):
                command = forms.copied("command")
                yaml = forms.copied("YAML")
            mixed(studio)


def mixed(studio: Studio) -> None:
    """A LoRA by its scale, or two of them, on the same noise."""
    gr.Markdown("## Scale one, or mix two")
    with gr.Row():
        first, second = (gr.Dropdown([], label=f"{word} LoRA", elem_id=f"mix-{word}") for word in ("first", "second"))
    with gr.Row():
        scales = [
            gr.Slider(-1, 2, value=value, step=0.05, label=f"scale of the {word}", elem_id=f"mix-{word}-scale")
            for word, value in (("first", 1), ("second", 0))
        ]
    with gr.Row():
        prompt = gr.Textbox("a horse", label="prompt", elem_id="mix-prompt")
        steps, seed = gr.Number(25, label="steps", precision=0, minimum=1), gr.Number(0, label="seed", precision=0)
    go = gr.Button("Draw with these", elem_id="mix-go")
    status, live, pictures, trace = (gr.HTML("", elem_id=f"mix-{word}") for word in ("status", "live", "pictures", "trace"))
    last = gr.JSON({}, **forms.HIDDEN)

    @forms.told
    def draw(
        text: str, a: str | None, b: str | None, one: float, two: float, count: int, number: int
    ) -> Iterator[tuple[Any, ...]]:
        loras = [f"{name}={scale:g}" for name, scale in ((a, one), (b, two)) if name and scale]
        wanted = {"prompts": forms.lines(text), "images": 4, "steps": int(count), "seed": int(number)}
        wanted |= {"lora": loras} if loras else {}
        studio.workspace.check(wanted)
        GenerateConfig.resolve(wanted)
        yield from drawn(studio, "generate", wanted)

    parts = [prompt, first, second, *scales, steps, seed]
    outputs = [status, live, pictures, trace, last]
    how: dict[str, Any] = {"concurrency_id": "worker", "show_progress": "hidden"}
    go.click(draw, parts, outputs, **how)
    for slider in scales:
        slider.release(draw, parts, outputs, **how)
    for one in (first, second):
        one.focus(lambda: gr.Dropdown(trained(studio)), None, one, **forms.ASIDE)


def _listed(lines: Sequence[str]) -> str:
    cells = [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if len(line.split(None, 1)) == 2]
    return show.table(("", "what doctor found"), cells, "doctor")
