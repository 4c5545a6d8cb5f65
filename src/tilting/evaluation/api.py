"""`tl.compare` and `tl.evaluate`, the commands from Python."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tilting.config.compare import CompareConfig
from tilting.config.evaluate import EvaluateConfig
from tilting.disk import folder_given
from tilting.errors import TiltingError
from tilting.evaluation import compare as comparing
from tilting.evaluation import run as evaluating
from tilting.evaluation.compare_page import PAGE, SHEET
from tilting.generation.api import precision_of
from tilting.generation.coerce import model_of
from tilting.generation.run import Parts, load_parts
from tilting.models.inputs import OPTIONS
from tilting.models.placement import FULL, SWITCHES


class Measured(dict[str, Any]):
    """What metrics.json holds; it shows itself as the command's table, in a notebook with the pictures.

    Args:
        numbers: what metrics.json holds.
        table: of them, for people.
        page, picture: files of it, where there are.
    """

    def __init__(self, numbers: Mapping[str, Any], table: str, page: Path, picture: Path | None = None):
        super().__init__(numbers)
        self.table, self.page, self.picture = table, page, picture

    def __repr__(self) -> str:
        return f"{self.table}\npage: {self.page}"

    def _repr_html_(self) -> str:
        shown = f"<pre>{escape(repr(self))}</pre>"
        if self.picture is None:
            return shown
        uri = base64.b64encode(self.picture.read_bytes()).decode()
        return f'<img alt="{escape(self.picture.name)}" style="max-width:100%" src="data:image/png;base64,{uri}">{shown}'


def compare(
    prompts: str | Sequence[str | Mapping[str, Any]],
    methods: str | Sequence[str] | None = None,
    *,
    out: str | Path,
    model: Any = "pocket",
    progress: bool = True,
    **options: Any,
) -> Measured:
    """Draw the same prompts and noise by several methods, side by side on a page, as `tilting compare` does.

    Args:
        prompts: one or several.
        methods: columns, as ``--methods`` has them: names, ``"codex:strength=0.4"``, ``"lora:DIR"``; default the command's.
        out: folder to write, or to go on with: compare.html, metrics.json, tables, figures, a run per method.
        model: its name, or one that is loaded, which says itself where it runs, how, and with which inputs.
        progress: show bars on stderr.
        options: the command's, such as ``reward="clip"``, ``images=2``, ``steps=25``, ``sweep="codex.strength=0.1,0.2"``.

    Returns:
        What metrics.json holds (see `tilting.evaluation.compare.measure`), which shows itself.

    Raises:
        TiltingError: before anything is drawn, in one sentence.
    """
    folder_given(out)
    model = str(model) if isinstance(model, Path) else model
    name = model if isinstance(model, str) else model_of(model).name
    texts = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
    for what, given, such in (("methods", methods, "codex:strength=0.4"), ("reward", options.get("reward"), "my.py:score")):
        if not all(isinstance(one, str) for one in (given if isinstance(given, list | tuple) else [given or ""])):
            raise TiltingError(f"a comparison goes on in its folder by the names of its {what}: give texts, such as {such!r}")
    asked = {"prompts": texts, "methods": methods, "model": name, "out": str(out), **options}
    if not isinstance(model, str):
        held = precision_of(model) or FULL
        _check_loaded(CompareConfig.checked(asked), held)
        asked["precision"] = held
    config = CompareConfig.resolve(asked)

    def parts(one: Any) -> Parts:
        return load_parts(one, None if isinstance(model, str) or one.lora else lambda *_, **__: model)

    found, folder = comparing.compare(config, ["tilting.compare"], not progress, parts), Path(out)
    return Measured(found, comparing.describe(found), folder / PAGE, folder / SHEET)


OF_LOADING = ("device", "precision", "long_prompts", "input", *OPTIONS, *SWITCHES)
"""Options of how a model is loaded."""


def _check_loaded(given: Mapping[str, Any], precision: str) -> None:
    """Refuse options that a loaded model, of a precision, has no use for. Raises TiltingError."""
    told = {name: value for name in OF_LOADING if (value := given.get(name)) and (name, value) != ("precision", precision)}
    if told:
        name, value = next(iter(told.items()))
        if name == "precision":
            raise TiltingError(f"precision is {value} here, and the model is loaded in {precision}: give one of them")
        raise TiltingError(f"{name} is of loading, and this model is loaded: give it to tilting.load")


def evaluate(runs: str | Path | Sequence[str | Path], *, out: str | Path, progress: bool = True, **options: Any) -> Measured:
    """Measure what runs gained, and whether they gamed the reward, as `tilting evaluate` does.

    Args:
        runs: folders of `tilting generate`, or of `Result.save`.
        out: folder to write: metrics.json, report.html, table.csv, table.tex.
        progress: show a bar on stderr.
        options: the command's, such as ``reference="runs/base-seed1"``.

    Returns:
        What metrics.json holds, which shows itself.

    Raises:
        TiltingError: in one sentence; nothing is written then.
    """
    folder_given(out)
    folders = list(runs) if isinstance(runs, list | tuple) else [runs]
    if other := [one for one in folders if not isinstance(one, str | Path)]:
        raise TiltingError(f"runs must be folders, not {other[0]!r}: save one by out.save(DIR), and give DIR")
    config = EvaluateConfig.resolve({"runs": [str(one) for one in folders], "out": str(out), **options})
    found = evaluating.evaluate(config, ["tilting.evaluate"], not progress)
    return Measured(found, evaluating.describe(found), Path(out) / evaluating.REPORT)
