"""Control: labelled pictures, their classes, a classifier of them, a control trained on it, and pictures by its labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from tilting.config.condition_fit import FitConfig
from tilting.config.condition_sample import SampleConfig
from tilting.config.condition_train import TrainConfig
from tilting.errors import TiltingError
from tilting.features.schema import SPREAD, Schema
from tilting.models.control_spec import read_control
from tilting.runs.files import MANIFEST, read_json
from tilting.runs.owner import FIT
from tilting.studio import forms, show
from tilting.studio.draw_tab import drawn
from tilting.studio.follow import follow
from tilting.studio.train_tab import curves_of, trained
from tilting.studio.workspace import PICTURES, SHOWN, TABLES

if TYPE_CHECKING:
    from tilting.studio.page import Studio

FIT_MAIN, FIT_MORE = (
    ("epochs", "bins", "size"),
    ["label-by", "kind", "widths", "batch-size", "lr", "patience", "skip-bad", "group", "seed", "device"],
)
TRAIN_MAIN = ("train-steps", "steps", "batch-size", "seed")
TRAIN_MORE = """gamma kl place planner truncation cfg eta negative-prompt lora-lr embedding-lr rank lora-alpha weight-decay clip
schedule warmup ema checkpoint-every device precision""".split()  # noqa: SIM905
DRAW = ("images", "steps", "seed", "cfg")
FEW = 6
"""Classes that are shown as buttons side by side."""


def fitted(studio: Studio) -> list[str]:
    """Folders of fits."""
    return [run.name for run in studio.workspace.runs() if run.kind == FIT.what]


def of_fit(root: Path, folder: Path) -> str:
    """What a fit has found: its numbers, reliability and confusion."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    parts = []
    for label, row in (manifest.get("summary") or {}).items():
        known = {"accuracy": "accuracy", "commonest": "of the commonest class alone", "r2": "R²", "rmse": "RMSE"}
        numbers = [(what, f"{row[key]:.3f}") for key, what in known.items() if isinstance(row.get(key), int | float)]
        numbers += [("ECE, calibrated", f"{row['ece']['after']:.3f}")] if isinstance(row.get("ece"), dict) else []
        parts.append(show.table(("", label), numbers, f"classifier of {label}, on held-out pictures"))
    pictures = [path for name in SHOWN for path in sorted(folder.rglob(name))]
    parts += [
        show.picture(show.link(path.relative_to(root).as_posix()), f"{path.name} of {folder.name}", path.name, "shown")
        for path in pictures
    ]
    return "".join(parts) or show.note("Nothing is fitted yet.")


def control_tab(studio: Studio) -> None:
    """Build the tab."""
    gr.Markdown("## 1 · Labelled pictures")
    said = "A table (.csv, .jsonl, .parquet), or a folder of class folders; a zip of one is put into uploads/."
    data = gr.Textbox("", label="path in the workspace", info=said, elem_id="control-data")
    with gr.Row():
        kinds: dict[str, Any] = {"file_count": "multiple", "file_types": [*TABLES, *PICTURES, ".zip"]}
        given = gr.UploadButton("Upload a table or a zip", elem_id="control-files", **kinds)
        look = gr.Button("Look at the labels", elem_id="control-look")
    seen = gr.HTML("", elem_id="control-seen")
    gr.Markdown("## 2 · A classifier")
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            labels = gr.Dropdown(
                [],
                multiselect=True,
                label="labels",
                info="Columns to learn; none takes all.",
                allow_custom_value=True,
                elem_id="control-labels",
            )
            fit_main = forms.options(FitConfig, FIT_MAIN, "fit-")
            with gr.Accordion("More options", open=False):
                fit_more = forms.options(FitConfig, FIT_MORE, "fit-")
            fit_out = gr.Textbox("", label="folder", info="In the workspace; empty takes the next fit-N.")
            fit = gr.Button("Fit", variant="primary", elem_id="control-fit")
        with gr.Column(scale=2, min_width=320):
            fit_watched, fit_status = follow(
                studio, "fit", "fit", lambda: fitted(studio), lambda folder: (of_fit(studio.workspace.root, folder),)
            )
    gr.Markdown("## 3 · A control")
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            prompts = gr.Textbox(
                "", lines=2, label="prompts", info="One a line; none takes all that pocket draws.", elem_id="control-prompts"
            )
            train_main = forms.options(TrainConfig, TRAIN_MAIN, "control-")
            with gr.Accordion("More options", open=False):
                train_more = forms.options(TrainConfig, TRAIN_MORE, "control-")
            train_out = gr.Textbox("", label="folder", info="In the workspace; empty takes the next control-N.")
            train = gr.Button("Train on the fit above", variant="primary", elem_id="control-train")
        with gr.Column(scale=2, min_width=320):
            watched, status = follow(
                studio, "control", "control", lambda: trained(studio, control=True), lambda folder: (curves_of(folder),)
            )
    with gr.Accordion("The same as a command or YAML", open=False):
        command = forms.copied("command")
        yaml = forms.copied("YAML")

    def where(path: str) -> str:
        if not path.strip():
            raise TiltingError("give a table or a zip, or the path of one in the workspace")
        studio.workspace.check({"data": path})
        return path.strip()

    @forms.told
    def uploaded(files: list[str]) -> str:
        return studio.workspace.keep(files)

    @forms.told
    def looked(path: str) -> tuple[Any, ...]:
        found = studio.resident.last("look", asked={"data": where(path)})
        cells = []
        for row in found["labels"]:
            classes = ", ".join(f"{name}: {count}" for name, count in row["classes"].items())
            cells.append((row["label"], row["kind"], classes or f"{row['range'][0]} … {row['range'][1]}", str(row["known"])))
        told = "".join(show.note(line) for line in found["told"])
        listed = show.table(("label", "kind", "classes", "pictures"), cells, f"{found['pictures']} labelled pictures")
        return listed + told, gr.Dropdown([row["label"] for row in found["labels"]])

    fit_entries, train_entries = [*fit_main, *fit_more], [*train_main, *train_more]

    @forms.told
    def start_fit(path: str, names: Sequence[str], folder: str, *values: Any) -> tuple[Any, ...]:
        wanted = {"data": where(path)} | ({"label": list(names)} if names else {}) | forms.asked(fit_entries, values)
        return studio.queue("condition fit", FitConfig, wanted, folder, "fit")

    @forms.told
    def start_training(text: str, fits: str | None, folder: str, *values: Any) -> tuple[Any, ...]:
        if not fits:
            raise TiltingError("there is no classifier yet: fit one, or choose one above")
        place = studio.workspace.file(fits)
        manifest = read_json(place / MANIFEST)
        known = list(manifest.get("labels") or ())
        wanted = {"prompts": forms.lines(text)} | {
            "classifier": [fits] if len(known) < 2 else [f"{fits}/{one}" for one in known]
        }
        return studio.queue("condition train", TrainConfig, wanted | forms.asked(train_entries, values), folder, "control")

    how: dict[str, Any] = {"show_progress": "hidden"}
    for asked in (look.click, data.submit, given.upload(uploaded, given, data, **how).success):
        asked(looked, data, [seen, labels], concurrency_id="worker", **how)
    fit_parts = [data, labels, fit_out, *(entry.component for entry in fit_entries)]
    fit.click(start_fit, fit_parts, [fit_watched, fit_status, command, yaml], **how)
    train_parts = [prompts, fit_watched, train_out, *(entry.component for entry in train_entries)]
    train.click(start_training, train_parts, [watched, status, command, yaml], **how)
    by_labels(studio, watched)


def by_labels(studio: Studio, watched: Any) -> None:
    """Pictures by the labels of the control that is watched."""
    gr.Markdown("## 4 · Pictures by its labels")
    refresh = gr.Button("Show the labels of the control above", elem_id="label-show")
    asked = gr.Textbox("", **forms.HIDDEN)
    refresh.click(lambda name: name or "", watched, asked, **forms.ASIDE)

    @gr.render(inputs=[asked], queue=False)
    def own(name: str) -> None:
        if not name:
            return
        try:
            info = read_control(studio.workspace.file(name))
        except TiltingError as error:
            gr.HTML(show.note(str(error), alert=True))
            return
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                prompt = gr.Textbox("a cat", label="prompt", elem_id="label-prompt")
                choices = [(schema.label, _chooser(schema, name)) for schema in info.labels]
                strength = gr.Slider(0, 4, value=1, step=0.1, label="strength", info="Of the labels; 0 is the model itself.")
                entries = forms.options(SampleConfig, DRAW, "label-", images=4)
                go = gr.Button("Draw", variant="primary", elem_id="label-go")
            with gr.Column(scale=2, min_width=320):
                pictured = [gr.HTML("", elem_id=f"label-{word}") for word in ("status", "live", "pictures", "trace")]
                folder = gr.Textbox("", label="save to the folder", info="In the workspace; empty takes the next sample-N.")
                save = gr.Button("Save")
                saved = gr.HTML("")
        last = gr.JSON({}, **forms.HIDDEN)

        @forms.told
        def draw(text: str, much: float, *values: Any) -> Iterator[tuple[Any, ...]]:
            mine, rest = values[: len(choices)], values[len(choices) :]
            labels = [f"{label}={value}" for (label, _), value in zip(choices, mine, strict=True) if value not in (None, "")]
            wanted = {"control": [name], "label": labels, "prompts": forms.lines(text)} | forms.asked(entries, rest)
            wanted |= {} if much == 1 else {"strength": [float(much)]}
            studio.workspace.check(wanted)
            SampleConfig.resolve(wanted)
            yield from drawn(studio, "condition sample", wanted)

        @forms.told
        def keep(out: str, wanted: dict[str, Any]) -> str:
            return studio.save(out, "condition sample", SampleConfig, wanted, "sample")

        parts = [prompt, strength, *(one for _, one in choices), *(entry.component for entry in entries)]
        go.click(draw, parts, [*pictured, last], concurrency_id="worker", show_progress="hidden")
        save.click(keep, [folder, last], saved, concurrency_id="worker", show_progress="hidden")


def _chooser(schema: Schema, name: str) -> Any:
    """What a label's value is chosen by: its classes, or a slider over the numbers that were learnt."""
    key = f"{name} {schema.label}"
    if schema.kind == "classes":
        kind = gr.Radio if len(schema.classes) <= FEW else gr.Dropdown
        return kind(
            list(schema.classes), value=schema.classes[-1], label=schema.label, key=key, elem_id=f"label-{schema.label}"
        )
    low, high = (schema.shift + side * SPREAD * abs(schema.scale) for side in (-1, 1))
    step = (high - low) / 100
    return gr.Slider(low, high, value=schema.shift, step=step, label=schema.label, key=key, elem_id=f"label-{schema.label}")
