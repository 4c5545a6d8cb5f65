"""`tilting condition sample`: images that obey labels, in a folder as `tilting generate` writes it. Torch-free to import.

Beside what `generate` records, every image has the path KL of its chain to the pre-trained model (``kl``) and what the
control's own classifiers say of it (``labels``). A sweep of strengths is a folder of such folders, sweep.json and sweep.png.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.experiments import folder as files
from tilting.experiments import run as generating
from tilting.experiments.condition.sample_config import SampleConfig

if TYPE_CHECKING:
    from tilting.experiments.generate import Counts, Drawn
    from tilting.experiments.run import Judge, Parts
    from tilting.features.fitted import FittedClassifier
    from tilting.models.control_file import Control
    from tilting.models.control_kl import PathKl

SWEEP = "sweep.json"


@dataclass
class Held:
    """What is loaded once for a sweep, and what looks at the images of the run that is on.

    Attributes:
        parts: model, reward and judge, without controls.
        controls: by folder.
        kl: of the run.
        classifiers: label -> (classifier, what was asked), of labels whose classifier the folder keeps.
    """

    parts: Parts | None = None
    controls: dict[str, Control] = field(default_factory=dict)
    kl: PathKl | None = None
    classifiers: dict[str, tuple[FittedClassifier, str | float]] = field(default_factory=dict)

    def load(self, config: SampleConfig) -> Parts:
        """What a run needs: the controlled model in the model's place."""
        from tilting.models.control_file import load_control
        from tilting.models.control_kl import PathKl
        from tilting.models.labels import together

        if self.parts is None:
            self.parts = generating.load_parts(config)
            model: Any = self.parts.model
            self.controls = {place: load_control(place, model) for place in config.control}
        asked = config.asked()
        whole = together(*(self.controls[place].at(config.strengths[0], **asked[place]) for place in config.control))
        whole.watch = self.kl = PathKl(whole.schedule.grid(config.steps), config.eta)
        for place, labels in asked.items():
            self.classifiers |= self.controls[place].tests(labels)
        return self.parts._replace(model=whole)


class SampleFolder(generating.Folder):
    """A run's folder; see `tilting.experiments.run.Folder`."""

    def __init__(self, config: SampleConfig, argv: Sequence[str] = (), held: Held | None = None):
        self.held = held or Held()
        super().__init__(config, argv)

    def identities(self) -> dict[str, Any]:
        found, config = super().identities(), self.config
        found["model"]["controls"] = config.digests()  # type: ignore[attr-defined]
        return found

    def records_of(self, drawn: Drawn, judge: Judge | None) -> list[dict[str, Any]]:
        from tilting.experiments.condition.notes import note

        return note(super().records_of(drawn, judge), drawn.images, self.held.kl, self.held.classifiers)

    def summarise(self, records: list[dict[str, Any]], counts: Counts) -> dict[str, Any]:
        from tilting.experiments.condition.notes import sum_up

        return {**super().summarise(records, counts), **sum_up(records)}


def condition_sample(config: SampleConfig, argv: Sequence[str] = (), quiet: bool = False) -> dict[str, Any]:
    """Draw what is missing of a run, or of the runs of a sweep.

    Args:
        config: from `resolve_sample`; ``out`` must be set.
        argv: the command, for the record.
        quiet: no progress bar.

    Returns:
        The manifest; of a sweep what sweep.json holds: {"sweep": [{"strength", "folder", "summary"}]}.

    Raises:
        TiltingError: for a request or a folder that cannot work.
    """
    held = Held()

    def one(at: SampleConfig) -> dict[str, Any]:
        return generating.run(at, argv, quiet, held.load, partial(SampleFolder, held=held))  # type: ignore[arg-type]

    if len(config.strengths) == 1 or config.out is None:
        return one(config)
    out = files.check_writable(config.out)
    rows = []
    for strength in config.strengths:
        name = f"strength-{strength:g}"
        manifest = one(config.at(strength, str(out / name)))
        rows.append({"strength": strength, "folder": name, "summary": manifest["summary"]})
        files.write_atomically(out / SWEEP, (json.dumps({"sweep": rows}, indent=1, ensure_ascii=False) + "\n").encode())
    from tilting.experiments.grid import comparison_grid

    comparison_grid([(f"strength {row['strength']:g}", out / row["folder"]) for row in rows], out / "sweep.png")
    return {"sweep": rows}


def _obedience(summary: dict[str, Any]) -> str:
    parts = ["KL -" if summary["kl_mean"] is None else f"KL {summary['kl_mean']:.4g}"]
    for name, found in summary["labels"].items():
        seen = f"{found['obeys']:.0%} obey" if "obeys" in found else f"mean {found['mean']:.4g}"
        parts.append(f"{name}={found['asked']}: {seen}, log p {found['log_prob']:.3f}")
    return ", ".join(parts)


def describe(manifest: dict[str, Any]) -> str:
    """Lines for people."""
    if "sweep" in manifest:
        lines = [f"strength {row['strength']:g}: {_obedience(row['summary'])}" for row in manifest["sweep"]]
        return "\n".join(lines)
    place = Path(manifest["config"]["out"])
    return f"{generating.describe(manifest)}\n{_obedience(manifest['summary'])}\ngrid: {place / 'grid.png'}"
