"""`tilting condition sample`: images with given labels, in a folder like that of `tilting generate`.

Beside what `generate` records, every image has the path KL of its chain to the pre-trained model (``kl``) and what the
classifiers that it was trained or guided by say of it (``labels``; those of noisy latents at the least noise). A sweep of
strengths is a folder of such folders, sweep.json and sweep.png.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

from tilting.conditioning.guided import Obeying, check_noise, controlled, guided_by
from tilting.conditioning.noisy import load_noisy
from tilting.conditioning.readings import Tests, Watcher, averaged, mean_readings, obedience, read_images, with_readings
from tilting.config.condition_sample import SampleConfig
from tilting.config.generate import GenerateConfig
from tilting.declare import Option
from tilting.features.fitted import load_classifier
from tilting.generation import run as generating
from tilting.generation.folder import Folder
from tilting.generation.generate import Drawn, draw, identities, plan
from tilting.generation.plan import grid_of
from tilting.generation.progress import announce
from tilting.lazy import torch
from tilting.models.control_file import load_control
from tilting.models.control_kl import PathKl
from tilting.presets import Preset
from tilting.presets.guided import WatchedDps
from tilting.reports.grid import comparison_grid
from tilting.rewards.elsewhere import elsewhere
from tilting.rewards.metadata import informed
from tilting.rewards.spec import build
from tilting.runs.files import SWEEP, write_json
from tilting.runs.lock import exclusive
from tilting.runs.owner import SWEEP_OF_RUNS, folder_of
from tilting.runs.processes import join_processes

Base = tuple[Any, float]
"""Pictures (n, 3, h, w) of the pre-trained model, and what the judge says of them, on average."""
COMPARED = 16
"""Pictures of the pre-trained model that a run is compared with."""

if TYPE_CHECKING:
    from tilting.generation.generate import Counts
    from tilting.generation.run import Judge, Parts
    from tilting.models.control_file import Control


@dataclass(frozen=True)
class _Watched(SampleConfig):
    """A request whose reconstruction guidance is watched: how far it moves the predictions."""

    watch: Annotated[Any, Option(internal=True)] = field(default=None, compare=False)

    def preset(self) -> Preset:
        plain: Any = super().preset()
        return WatchedDps(**{f.name: getattr(plain, f.name) for f in fields(plain)}, watch=self.watch)


@dataclass
class Loaded:
    """What is loaded once for the runs of a sweep, and what looks at the images of the one that is on.

    Attributes:
        parts: model, reward and judge, without controls.
        rewards: by their specs.
        controls: by folder.
        watcher: has the path KL of the run.
        tests: label -> (classifier, what was asked), of labels whose classifier is there.
        bases: the pre-trained model's pictures and what the judge says of them, by what they are of; None without a judge.
        base: the same of the run that is on.
        quiet: say nothing while the model is loaded.
    """

    parts: Parts | None = None
    rewards: dict[tuple[str, ...], Any] = field(default_factory=dict)
    controls: dict[str, Control] = field(default_factory=dict)
    watcher: Watcher = field(default_factory=Watcher)
    tests: Tests = field(default_factory=dict)
    bases: dict[Any, Base | None] = field(default_factory=dict)
    base: Callable[[], Base | None] = lambda: None
    quiet: bool = True

    def plain(self, config: GenerateConfig) -> Parts:
        """Model and judge, loaded once, and the reward of a config."""
        if self.parts is None:
            announce(f"loading {config.model}", self.quiet)
            self.parts = generating.load_parts(config)
            self.rewards[config.reward] = self.parts.reward
        if config.reward not in self.rewards:
            self.rewards[config.reward] = build(config.specs()) if config.reward else None
        reward = informed(self.rewards[config.reward], config.prompts, config.metadata)
        return self.parts._replace(reward=reward and elsewhere(reward, config.reward_device))

    def load(self, config: SampleConfig) -> Parts:
        """What a run needs: in the model's place the controlled or guided one."""
        parts = self.plain(config)
        drawn = config.prompts, config.seeds, config.images, config.steps, config.cfg, config.eta, config.negative_prompt
        self.base = lambda: self.bases[drawn] if drawn in self.bases else self.bases.setdefault(drawn, base_of(config, parts))
        grid = grid_of(parts.model, config.preset().build(config.steps), config.steps)
        self.watcher.kl = PathKl(grid, config.eta, config.sde)
        obeying = self._obeying(config, parts.model)
        self.tests = obeying.tests
        return parts._replace(model=obeying.model)

    def _obeying(self, config: SampleConfig, model: Any) -> Obeying:
        asked = config.asked()
        if config.control:
            self.controls |= {folder: load_control(folder, model) for folder in asked if folder not in self.controls}
            controls = {folder: self.controls[folder] for folder in config.control}
            return controlled(controls, asked, config.strengths[0], self.watcher)
        check_noise(model.schedule, config.steps)
        labels = {name: value for values in asked.values() for name, value in values.items()}
        if config.noisy:
            return guided_by(model, [load_noisy(Path(p)) for p in asked], labels, config.strengths[0], self.watcher)
        return Obeying(model, {name: (load_classifier(Path(p)), labels[name]) for p, mine in asked.items() for name in mine})


class SampleFolder(Folder[SampleConfig]):
    """A run's folder; see `tilting.generation.folder.Folder`."""

    follows = True  # the path KL of a group stands in the watcher until the next

    def __init__(self, config: SampleConfig, argv: Sequence[str] = (), loaded: Loaded | None = None):
        self.loaded = loaded or Loaded()
        super().__init__(config, argv)

    def identities(self) -> dict[str, Any]:
        whole, config = super().identities(), self.config
        whole["model"] |= config.digests()
        return whole

    def records_of(self, drawn: Drawn, judge: Judge | None) -> list[dict[str, Any]]:
        return with_readings(super().records_of(drawn, judge), drawn.images, self.loaded.watcher.kl, self.loaded.tests)

    def summarise(self, records: list[dict[str, Any]], counts: Counts) -> dict[str, Any]:
        found = {**super().summarise(records, counts), **mean_readings(records)}
        if records and len(records) == self.total and found["judge_mean"] is not None:
            judged = [record["judge"] for record in records[:COMPARED] if record["judge"] is not None]
            if judged and (base := self.loaded.base()):
                pictures, judge = base
                read = {
                    label: {"asked": test[1], **averaged(read_images(*test, pictures))}
                    for label, test in self.loaded.tests.items()
                }
                found["base"] = {"judge": judge, "own": mean(judged), "images": len(pictures), "labels": read}
        return found


def sample_into(config: SampleConfig, loaded: Loaded, argv: Sequence[str] = (), quiet: bool = False) -> dict[str, Any]:
    """One run, with what other runs of the same model and controls have loaded; its manifest."""
    if config.clean:
        config = _Watched(**{f.name: getattr(config, f.name) for f in fields(SampleConfig)}, watch=loaded.watcher)
    return generating.run(config, argv, quiet, loaded.load, partial(SampleFolder, loaded=loaded))


def base_of(config: SampleConfig, parts: Parts) -> Base | None:
    """The pre-trained model's pictures of the run's own prompts and noise, the first `COMPARED`, and what the judge says of
    them; None where there is no judge."""
    if parts.judge is None:
        return None
    who = identities(config.prompts, config.seeds, config.images)[:COMPARED]
    plain = {"steps": config.steps, "cfg": config.cfg, "eta": config.eta, "sde": config.sde}
    request = plan(parts.model, who, negative_prompt=config.negative_prompt, batch_size=config.batch_size, **plain)
    drawn = [one for one in draw(parts.model, request) if isinstance(one, Drawn)]
    values = [v for one in drawn for v in parts.judge(one.images, [w.prompt for w in one.who]).tolist() if v == v]
    return (torch.cat([one.images for one in drawn]), mean(values)) if values else None


def condition_sample(config: SampleConfig, argv: Sequence[str] = (), quiet: bool = False) -> dict[str, Any]:
    """Draw what is missing of a run, or of the runs of a sweep.

    Args:
        config: checked; ``out`` must be set.
        argv: the command, for the record.
        quiet: no progress bar.

    Returns:
        The manifest; of a sweep what sweep.json holds: {"sweep": [{"strength", "folder", "summary"}]}.

    Raises:
        TiltingError: for a request or a folder that cannot work.
    """
    together = join_processes(config.device)
    loaded = Loaded(quiet=quiet or not together.main)
    if not quiet and together.main:
        infos = config.infos()
        for line in (line for folder, labels in config.asked().items() for line in infos[folder].doubts(labels)):
            print(f"tilting: {line}", file=sys.stderr)
    if config.out is None or len(config.strengths) == 1:
        return sample_into(config, loaded, argv, quiet)
    with exclusive(config.out):
        out = folder_of(config.out, SWEEP_OF_RUNS)
        rows = []
        for strength in config.strengths:
            name = f"strength-{strength:g}"
            manifest = sample_into(config.at(strength, str(out / name)), loaded, argv, quiet)
            rows.append({"strength": strength, "folder": name, "summary": manifest["summary"]})
            if together.main:
                write_json(out / SWEEP, {"sweep": rows}, allow_nan=True)
        if together.main:
            columns = [(f"strength {row['strength']:g}", out / row["folder"]) for row in rows]
            comparison_grid(columns, out / "sweep.png", per_prompt=config.images * len(config.seeds))
        return {"sweep": rows}


def describe(manifest: dict[str, Any], out: Path | None = None, trained: bool = True) -> str:
    """Lines for people; ``out`` is the folder of a sweep, whose strengths do not name it; ``trained``: by a control."""
    if "sweep" in manifest:
        lines = [f"strength {row['strength']:g}: {obedience(row['summary'], trained)}" for row in manifest["sweep"]]
        return "\n".join(lines + ([f"pictures: {out / 'sweep.png'}"] if out else []))
    grid = Path(manifest["config"]["out"]) / "grid.png"
    return f"{generating.describe(manifest)}\n{obedience(manifest['summary'], trained)}\ngrid: {grid}"
