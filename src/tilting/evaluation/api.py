"""`tl.compare` and `tl.evaluate`, the commands from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting.config.compare import CompareConfig
from tilting.config.evaluate import EvaluateConfig
from tilting.evaluation import compare as comparing
from tilting.evaluation import run as evaluating
from tilting.generation.run import Parts, load_parts


def compare(
    prompts: str | Sequence[str | Mapping[str, Any]],
    methods: str | Sequence[str] | None = None,
    *,
    out: str | Path,
    model: Any = "pocket",
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Draw the same prompts and noise by several methods, side by side on a page, as `tilting compare` does.

    Args:
        prompts: one or several.
        methods: columns, as ``--methods`` has them: names, ``"codex:strength=0.4"``, ``"lora:DIR"``; default the command's.
        out: folder to write, or to go on with: compare.html, metrics.json, tables, figures, a run per method.
        model: its name, or one that is loaded.
        progress: show bars on stderr.
        options: the command's, such as ``reward="clip"``, ``images=2``, ``steps=25``, ``sweep="codex.strength=0.1,0.2"``.

    Returns:
        What metrics.json holds; see `tilting.evaluation.compare.measure`.

    Raises:
        TiltingError: before anything is drawn, in one sentence.
    """
    name = model if isinstance(model, str) else model.name
    texts = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
    asked = {"prompts": texts, "methods": methods, "model": name, "out": str(out), **options}
    config = CompareConfig.resolve(asked)

    def parts(one: Any) -> Parts:
        return load_parts(one, None if isinstance(model, str) or one.lora else lambda *_, **__: model)

    return comparing.compare(config, ["tilting.compare"], not progress, parts)


def evaluate(
    runs: str | Path | Sequence[str | Path], *, out: str | Path, progress: bool = True, **options: Any
) -> dict[str, Any]:
    """Measure what runs gained, and whether they gamed the reward, as `tilting evaluate` does.

    Args:
        runs: folders of `tilting generate`, or of `Result.save`.
        out: folder to write: metrics.json, report.html, table.csv, table.tex.
        progress: show a bar on stderr.
        options: the command's, such as ``reference="runs/base-seed1"``.

    Returns:
        What metrics.json holds.

    Raises:
        TiltingError: in one sentence; nothing is written then.
    """
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    config = EvaluateConfig.resolve({"runs": [str(one) for one in folders], "out": str(out), **options})
    return evaluating.evaluate(config, ["tilting.evaluate"], not progress)
