"""The folder of a fine-tuning run: its manifest, and metrics in JSON lines, which are truncated on resume. Torch-free.

    lora/  ema/  best/  kept/  checkpoints/  samples/  before/  after/  tensorboard/  metrics.jsonl  timing.jsonl
    manifest.json; and beside them finetune.html, before-after.png and curve.png, which `tilting.evaluation.tuned_page` makes

metrics.jsonl holds what a run is determined to give, a line per training step; seconds stand in timing.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from tilting.config.finetune import FinetuneConfig
from tilting.config.objectives import defaults
from tilting.config.pairs import read_pairs
from tilting.config.training import TrainingConfig, mixed_precision
from tilting.disk import append, write_atomically
from tilting.errors import TiltingError
from tilting.models.families import kind_of
from tilting.models.inputs import files_of, resolve_inputs
from tilting.models.look_decoder import find_look_decoder
from tilting.models.lora_file import lora_files, parse_lora
from tilting.models.names import find_model
from tilting.models.placement import NEUTRAL
from tilting.objectives import OBJECTIVES
from tilting.runs import files
from tilting.runs.owner import TRAINING
from tilting.runs.run_folder import RunFolder

Config = TypeVar("Config", bound=TrainingConfig)
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"


class TrainingFolder(RunFolder[Config]):
    """The folder of a training run; see `RunFolder`."""

    free = ("out", "tracker", "unused", "device", "reward-device", *NEUTRAL)
    kind, inside = TRAINING, "samples"
    longer = "choose another --out"
    """What to do about a run that is wanted longer, where it cannot go on by itself."""

    def __init__(self, config: Config, argv: Sequence[str] = ()):
        super().__init__(config, argv)
        if self.before and self.before["config"].get("train-steps", 0) < config.train_steps:  # it is to go on
            self.summary = {**self.summary, "finished": False}

    def binds(self, before: Mapping[str, Any]) -> bool:
        steps = before["summary"].get("steps")
        return any(self.checkpoints.glob("*")) if steps is None else steps > before["summary"].get("skipped", 0)

    def may_differ(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        steady = now.get("schedule") in ("constant", "sqrt")  # the others' rates depend on where a run is to end
        raised = key == "train-steps" and isinstance(before.get(key), int) and before[key] < now[key]
        return super().may_differ(key, before, now) or (raised and steady)

    def read(self) -> dict[str, Any] | None:
        path = self.path / files.MANIFEST
        if path.exists():
            kinds = {"config": dict, "summary": dict, "model": dict, "reward": list}
            manifest = files.parsed(path, lambda manifest: files.lacks(manifest, kinds))
            return {**manifest, "config": self.by_todays_names(manifest["config"]), "written": manifest["config"]}
        if any((self.path / name).exists() for name in ("lora", "checkpoints", METRICS)):
            raise TiltingError(
                f"{str(self.path)!r} holds training and there is no {files.MANIFEST} beside it: choose another --out"
            )
        return None

    def by_todays_names(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config of a manifest, whose options may have their former names, and of newer ones their defaults."""
        options, now = self.config.options(), self.config.mapping()
        former = {alias: one.option for one in options.values() for alias in one.aliases}
        known = {former.get(key, key): value for key, value in config.items()}
        return {key: one.default for key, one in options.items() if now.get(key) == one.default} | known

    def check(self, manifest: Mapping[str, Any], path: str) -> None:
        before, now = self.by_todays_names(manifest["config"]), self.head["config"]
        super().check({**manifest, "config": before}, path)
        if before.get("train-steps") != now["train-steps"]:  # it cannot go on from elsewhere
            raise TiltingError(f"{path!r} holds a {self.noun} {RunFolder.difference(self, 'train-steps', before, now)}")

    def config_now(self) -> dict[str, Any]:
        """The options, and the launcher's mixed precision, which numbers depend on too."""
        return {**super().config_now(), "mixed-precision": mixed_precision()}

    def difference(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        said = super().difference(key, before, now)
        longer = key == "train-steps" and now[key] > before.get(key, 0)
        return said.replace("choose another --out", self.longer) if longer else said

    @property
    def finished(self) -> bool:
        """Whether the run is over and its LoRA is there."""
        return bool(self.summary.get("finished")) and any((self.path / "lora").glob("*.safetensors"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def answer(self) -> dict[str, Any]:
        """The manifest, and as ``call`` the steps that were there before this call and what it has paid itself."""
        had = self.before["summary"] if self.before else {}
        paid = {key: self.summary.get(key, 0) - (had.get(key) or 0) for key in ("evaluations", "seconds")}
        return {**self.manifest, "call": {"already": had.get("steps") or 0, **paid}}

    def begin(self, step: int) -> None:
        """Make the folder, write the manifest, then cut the lines back to a training step."""
        self.make()
        self.write()
        for name in (METRICS, TIMING):
            kept = [row for row in read_lines(self.path / name) if row["step"] <= step]
            write_atomically(self.path / name, "".join(map(_line, kept)).encode())

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl or timing.jsonl."""
        append(self.path / name, _line(row).encode(), sync=False)  # a checkpoint is what a run goes on from

    def sum_up(self, summary: Mapping[str, Any]) -> None:
        """Replace the manifest's summary; seconds are those of timing.jsonl."""
        rows = read_lines(self.path / TIMING)
        seconds = sum(value for row in rows for key, value in row.items() if key != "step")
        per_step = sorted(row["seconds"] for row in rows if "seconds" in row)
        median = per_step[len(per_step) // 2] if per_step else None
        self.summary = {**summary, "seconds": round(seconds, 3), "seconds_per_step": median}
        files.write_manifest(self.path, self.manifest)


def already_told(manifest: Mapping[str, Any]) -> str:
    """How many training steps were there before this call, in brackets; nothing where it began the run."""
    had = manifest.get("call", {}).get("already", 0)
    return f" ({had} {'was' if had == 1 else 'were'} already there)" if had else ""


class FinetuneFolder(TrainingFolder[FinetuneConfig]):
    """The folder of a fine-tuning run."""

    longer = "train it further by --init-lora into another --out"

    def __init__(self, config: FinetuneConfig, argv: Sequence[str] = ()):
        super().__init__(config, argv)
        packed = self.before is None or "mask" in self.before["written"]  # that option came with the order of today
        if not packed and not self.finished and kind_of(find_model(config.model)) == "FluxPipeline":
            raise TiltingError(
                f"{str(self.path)!r} holds a run of FLUX that was begun before its latents were packed, whose noise lies in "
                f"another order: choose another --out, and go on from its weights by --init-lora"
            )

    def rewards(self) -> list[dict[str, Any]]:
        return files.digests_of(self.config.specs())

    def by_todays_names(self, config: Mapping[str, Any]) -> dict[str, Any]:
        now = super().by_todays_names(config)
        return {**now, "set": {OBJECTIVES.current_key(key): value for key, value in now.get("set", {}).items()}}

    def defaults(self) -> dict[str, Any]:
        return {f"{self.config.objective}.{field}": value for field, value in defaults(self.config.objective).items()}

    def config_now(self) -> dict[str, Any]:
        config = self.config
        start = files.digest_of(lora_files(config.init_lora)) if config.init_lora else None
        taught = [files.digest_of(lora_files(parse_lora(one).file)) for one in config.teacher]
        now = {**super().config_now(), "init-lora-sha256": start, "unused": list(config.unused)}
        told = [files.digest(file) for file in files_of(*resolve_inputs(config))]
        table = [Path(config.pairs), *(file for pair in read_pairs(config.pairs) for file in pair[1:])] if config.pairs else []
        now |= {"pairs-sha256": files.digest_of(table)} if table else {}
        look = files.digest(Path(find_look_decoder(config.model, config.look_decoder))) if config.look_decoder else None
        now |= {"look-decoder-sha256": look} if look else {}
        return now | ({"teacher-sha256": taught} if taught else {}) | ({"input-sha256": told} if told else {})

    def difference(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        if key == "init-lora-sha256" and before.get("init-lora") == now.get("init-lora"):
            return "that began at a LoRA of other weights: choose another --out"
        if key == "pairs-sha256" and before.get("pairs") == now.get("pairs"):
            return "that learned from other pairs: choose another --out"
        if key == "teacher-sha256" and before.get("teacher") == now.get("teacher"):
            return "that distilled a LoRA of other weights: choose another --out"
        return super().difference(key, before, now)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines with a step; one that a kill has torn, and what follows it, is left out."""
    rows = files.read_lines(path, torn=False)
    return list(takewhile(lambda row: isinstance(row.get("step"), int), rows))


def _line(row: Mapping[str, Any]) -> str:
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return files.line(plain)
