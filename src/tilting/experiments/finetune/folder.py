"""The folder of a fine-tuning run: its manifest, and lines of numbers that are cut back to where a run goes on. Torch-free.

    lora/  best/  checkpoints/  samples/  tensorboard/  metrics.jsonl  timing.jsonl  manifest.json

metrics.jsonl holds what a run is determined to give, a line per training step; seconds stand in timing.jsonl.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tilting import __version__
from tilting.errors import TiltingError
from tilting.experiments import folder as files
from tilting.experiments.finetune.config import FinetuneConfig

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
FREE = ("out", "tracker", "unused")
"""Options that may differ when a run goes on."""


class FinetuneFolder:
    """A run's folder while it is written.

    Args:
        config: the request; ``out`` must be set.
        argv: what the manifest records as the command.

    Raises:
        TiltingError: a folder that cannot be written, holds another run, or a manifest that is corrupt. Nothing is made.
    """

    def __init__(self, config: FinetuneConfig, argv: Sequence[str] = ()):
        if not config.out:
            raise TiltingError("say where to write: --out DIR")
        self.config, self.path = config, files.check_writable(config.out)
        identities, now = self.identities(), self.config_now()
        before = _read(self.path)
        if before is not None:
            _check_same(self.path, before, now, identities, self.longer)
        self.head = {"version": __version__, "argv": list(argv), "config": now, **identities}
        self.summary: dict[str, Any] = before["summary"] if before else {}

    longer = "train it further by --init-lora into another --out"
    """What to do about a run that is wanted longer."""

    def identities(self) -> dict[str, Any]:
        """``model`` and ``reward`` of the manifest, which must not change while a run goes on."""
        return files.identities_of(cast(Any, self.config))

    def config_now(self) -> dict[str, Any]:
        """``config`` of the manifest."""
        return _config_of(self.config)

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds."""
        return {**self.head, "summary": self.summary}

    @property
    def finished(self) -> bool:
        """Whether the run is over and its LoRA is there."""
        return bool(self.summary.get("finished")) and any((self.path / "lora").glob("*.safetensors"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def begin(self, step: int) -> None:
        """Make the folder, cut its lines back to a training step, write the manifest."""
        try:
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TiltingError(f"cannot write into --out {self.config.out!r}: {error.strerror}") from error
        for name in (METRICS, TIMING):
            kept = [row for row in read_lines(self.path / name) if row["step"] <= step]
            files.write_atomically(self.path / name, "".join(map(_line, kept)).encode())
        files.write_manifest(self.path, self.manifest)

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl or timing.jsonl."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def sum_up(self, summary: Mapping[str, Any]) -> None:
        """Replace the manifest's summary; seconds are those of timing.jsonl."""
        rows = read_lines(self.path / TIMING)
        seconds = sum(value for row in rows for key, value in row.items() if key != "step")
        per_step = sorted(row["seconds"] for row in rows if "seconds" in row)
        median = per_step[len(per_step) // 2] if per_step else None
        self.summary = {**summary, "seconds": round(seconds, 3), "seconds_per_step": median}
        files.write_manifest(self.path, self.manifest)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines with a step; one that a kill has torn, and what follows it, is left out."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                break
            rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(plain, ensure_ascii=False) + "\n"


def _config_of(config: FinetuneConfig) -> dict[str, Any]:
    start = files.digest(Path(config.init_lora)) if config.init_lora else None
    return json.loads(json.dumps({**config.mapping(), "init-lora-sha256": start, "unused": list(config.unused)}))


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / files.MANIFEST
    if not path.exists():
        if any((folder / name).exists() for name in ("lora", "checkpoints", METRICS)):
            raise TiltingError(
                f"{str(folder)!r} holds training and there is no {files.MANIFEST} beside it: choose another --out"
            )
        return None
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise TiltingError(f"{str(path)!r} is corrupt (not JSON): move it away, or choose another --out") from None
    kinds = {"config": dict, "summary": dict, "model": dict, "reward": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind)]
    if wrong:
        raise TiltingError(f"{str(path)!r} is corrupt (no {wrong[0]}): move it away, or choose another --out")
    return manifest


def _check_same(
    folder: Path, manifest: Mapping[str, Any], now: Mapping[str, Any], identities: Mapping[str, Any], longer: str
) -> None:
    """Refuse to go on in a folder of another run. Raises TiltingError."""
    before = manifest["config"]
    for key, new in now.items():
        old = before.get(key)
        if key in FREE or old == new:
            continue
        if key == "set" and isinstance(old, dict):
            key = next(k for k in (*new, *old) if old.get(k) != new.get(k))
            old, new = old.get(key), new.get(key)
        values = f" ({_short(old)} there, {_short(new)} now)"
        hint = longer if key == "train-steps" else "choose another --out"
        raise TiltingError(f"{str(folder)!r} holds a run with another {key}{values}: {hint}")
    for key in ("model", "reward"):
        if manifest[key] != identities[key]:
            raise TiltingError(f"{str(folder)!r} holds a run whose {key} had other weights or code: choose another --out")


def _short(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
