"""`tilting condition sample`: images that obey labels, in a folder as `tilting generate` writes it. Torch-free to import.

Beside what `generate` records, every image has the path KL of its chain to the pre-trained model (``kl``) and what the
classifiers that it was trained or guided by say of it (``labels``; those of noisy latents at the least noise). A sweep of
strengths is a folder of such folders, sweep.json and sweep.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.config.condition_sample import SampleConfig
from tilting.errors import TiltingError
from tilting.generation import run as generating
from tilting.runs import files
from tilting.runs.owner import SWEEP_OF_RUNS, folder_of

if TYPE_CHECKING:
    from tilting.conditioning.notes import Watcher
    from tilting.config.generate import GenerateConfig
    from tilting.generation.generate import Counts, Drawn
    from tilting.generation.run import Judge, Parts
    from tilting.models.control_file import Control
    from tilting.schedule import Schedule


@dataclass
class Held:
    """What is loaded once for a sweep, and what looks at the images of the run that is on.

    Attributes:
        parts: model, reward and judge, without controls.
        rewards: by their specs.
        controls: by folder.
        watcher: has the path KL of the run.
        classifiers: label -> (classifier, what was asked), of labels whose classifier is there.
    """

    parts: Parts | None = None
    rewards: dict[tuple[str, ...], Any] = field(default_factory=dict)
    controls: dict[str, Control] = field(default_factory=dict)
    watcher: Watcher | None = None
    classifiers: dict[str, tuple[Any, str | float]] = field(default_factory=dict)

    def plain(self, config: GenerateConfig) -> Parts:
        """Model and judge, loaded once, and the reward of a config."""
        from tilting.rewards.spec import build

        if self.parts is None:
            self.parts = generating.load_parts(config)
            self.rewards[config.reward] = self.parts.reward
        if config.reward not in self.rewards:
            self.rewards[config.reward] = build(config.specs()) if config.reward else None
        return self.parts._replace(reward=self.rewards[config.reward])

    def load(self, config: SampleConfig) -> Parts:
        """What a run needs: in the model's place the controlled or guided one."""
        from tilting.conditioning.notes import Watcher
        from tilting.models.control_kl import PathKl

        parts = self.plain(config)
        model: Any = parts.model
        self.watcher = self.watcher or Watcher()
        self.watcher.kl = PathKl(model.schedule.grid(config.steps), config.eta)
        self.classifiers = {}
        if config.clean:
            return self._reconstructing(config, parts)
        return parts._replace(model=self._controlled(config, model) if config.control else self._guided(config, model))

    def _controlled(self, config: SampleConfig, model: Any) -> Any:
        from tilting.models.control_file import load_control
        from tilting.models.labels import together

        asked = config.asked()
        self.controls |= {place: load_control(place, model) for place in config.control if place not in self.controls}
        whole = together(*(self.controls[place].fixed(asked[place], config.strengths[0]) for place in config.control))
        whole.watch = self.watcher
        for place, labels in asked.items():
            self.classifiers |= self.controls[place].tests(labels)
        return whole

    def _reconstructing(self, config: SampleConfig, parts: Parts) -> Parts:
        from tilting.features.fitted import load_classifier

        check_noise(parts.model.schedule, config.steps)
        for place, labels in config.asked().items():
            self.classifiers |= {name: (load_classifier(Path(place)), value) for name, value in labels.items()}
        return parts

    def _guided(self, config: SampleConfig, model: Any) -> Any:
        from tilting.conditioning.guided import guided_by
        from tilting.conditioning.noisy import OfPictures, load_noisy

        check_noise(model.schedule, config.steps)
        asked = config.asked()
        found = {place: load_noisy(Path(place)) for place in asked}
        labels = {name: value for mine in asked.values() for name, value in mine.items()}
        whole = guided_by(model, list(found.values()), labels, config.strengths[0], self.watcher)
        seen = {c.schema.label: OfPictures(c, model.encode, model.schedule) for c in found.values()}
        self.classifiers = {name: (seen[name], value) for name, value in labels.items()}
        return whole


def check_noise(schedule: Schedule, steps: int) -> None:
    """Refuse a grid on which guidance does nothing. Raises TiltingError."""
    if all(t.alpha == 0 for t in schedule.grid(steps)[:-1]):
        raise TiltingError(f"a classifier has no effect at pure noise, which is all that {steps} step sees: use 2 or more")


class SampleFolder(generating.Folder[SampleConfig]):
    """A run's folder; see `tilting.generation.run.Folder`."""

    def __init__(self, config: SampleConfig, argv: Sequence[str] = (), held: Held | None = None):
        self.held = held or Held()
        super().__init__(config, argv)

    def identities(self) -> dict[str, Any]:
        found, config = super().identities(), self.config
        found["model"] |= config.digests()
        return found

    def records_of(self, drawn: Drawn, judge: Judge | None) -> list[dict[str, Any]]:
        from tilting.conditioning.notes import note

        kl = None if self.held.watcher is None else self.held.watcher.kl
        return note(super().records_of(drawn, judge), drawn.images, kl, self.held.classifiers)

    def summarise(self, records: list[dict[str, Any]], counts: Counts) -> dict[str, Any]:
        from tilting.conditioning.notes import sum_up

        return {**super().summarise(records, counts), **sum_up(records)}


def sample_into(config: SampleConfig, held: Held, argv: Sequence[str] = (), quiet: bool = False) -> dict[str, Any]:
    """One run, with what other runs of the same model and controls have loaded; its manifest."""
    if config.clean:
        from tilting.conditioning.notes import Watcher

        held.watcher = held.watcher or Watcher()
        config = replace(config, watch=held.watcher)
    return generating.run(config, argv, quiet, held.load, partial(SampleFolder, held=held))


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
    if config.control and not quiet:
        infos = config.infos()
        for said in (infos[place].partly(labels) for place, labels in config.asked().items()):
            if said is not None:
                print(f"tilting: {said}", file=sys.stderr)

    def one(at: SampleConfig) -> dict[str, Any]:
        return sample_into(at, held, argv, quiet)

    if config.out is None:
        return one(config)
    if len(config.strengths) == 1:
        return one(config)
    out = folder_of(config.out, SWEEP_OF_RUNS)
    rows = []
    for strength in config.strengths:
        name = f"strength-{strength:g}"
        manifest = one(config.at(strength, str(out / name)))
        rows.append({"strength": strength, "folder": name, "summary": manifest["summary"]})
        files.write_atomically(out / files.SWEEP, (json.dumps({"sweep": rows}, indent=1, ensure_ascii=False) + "\n").encode())
    from tilting.reports.grid import comparison_grid

    comparison_grid([(f"strength {row['strength']:g}", out / row["folder"]) for row in rows], out / "sweep.png")
    return {"sweep": rows}


def _obedience(summary: dict[str, Any]) -> str:
    parts = ["KL -" if summary["kl_mean"] is None else f"KL {summary['kl_mean']:.4g}"]
    for name, found in summary["labels"].items():
        seen = f"{found['obeys']:.0%} obey" if "obeys" in found else f"mean {found['mean']:.4g}"
        parts.append(f"{name}={found['asked']}: {seen}, log p {found['log_prob']:.3f}")
    return ", ".join(parts)


def describe(manifest: dict[str, Any], out: Path | None = None) -> str:
    """Lines for people; ``out`` is the folder of a sweep, whose strengths do not name it."""
    if "sweep" in manifest:
        lines = [f"strength {row['strength']:g}: {_obedience(row['summary'])}" for row in manifest["sweep"]]
        return "\n".join(lines + ([f"pictures: {out / 'sweep.png'}"] if out else []))
    place = Path(manifest["config"]["out"])
    return f"{generating.describe(manifest)}\n{_obedience(manifest['summary'])}\ngrid: {place / 'grid.png'}"
