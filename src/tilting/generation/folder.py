"""The folder of a `generate` run, resumable: images/, images.jsonl, manifest.json. Importing this imports no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tilting.config.generate import GenerateConfig, usual_settings
from tilting.disk import append, write_atomically
from tilting.errors import TiltingError
from tilting.generation.generate import Counts, Drawn, Judge, records_of, summarise
from tilting.generation.pictures import picture_file
from tilting.models.inputs import files_of, resolve_inputs, steps_run
from tilting.models.look_decoder import find_look_decoder
from tilting.models.lora_file import lora_files
from tilting.models.placement import NEUTRAL
from tilting.presets import METHODS
from tilting.reports.trace import Trace, write_trace
from tilting.runs import files
from tilting.runs.owner import RUN
from tilting.runs.run_folder import RunFolder

Generated = TypeVar("Generated", bound=GenerateConfig)


def counts_of(summary: Mapping[str, Any]) -> Counts:
    """What a manifest's summary, empty at first, says was paid."""
    return Counts(*(summary.get(key, 0) for key in ("evaluations", "decodes", "reward_calls", "seconds")))


class Folder(RunFolder[Generated]):
    """The folder of a `generate` run; see `RunFolder`. A reference picture may lie elsewhere when a run goes on."""

    # none a picture is of
    free = (
        "out",
        "unused",
        "image",
        "device",
        "batch-size",
        "only",
        "trace",
        "trace-every",
        "split",
        "reward-device",
        *NEUTRAL,
    )
    kind, inside, parts = RUN, "images", METHODS
    follows: ClassVar[bool] = False
    """Whether a group's records are read off what drew it, and so before the next one begins."""

    def __init__(self, config: Generated, argv: Sequence[str] = ()):
        super().__init__(config, argv)
        self.total = len(config.prompts) * len(config.seeds) * config.images
        again = set(config.wanted())
        if config.trace and not config.only:  # what was drawn without one is drawn again, and comes out as it was
            again |= self.records.keys() - set(self.traced)
        self.had = len(self.records.keys() - again)
        self.records = {number: record for number, record in self.records.items() if number not in again}
        self.counts = self.began = Counts()
        if config.auto:
            self.head["auto"] = dict(zip(("budget", "why"), config.auto, strict=True))

    def rewards(self) -> list[dict[str, Any]]:
        return files.digests_of(self.config.specs())

    def defaults(self) -> dict[str, Any]:
        return usual_settings(self.config.method)

    def config_now(self) -> dict[str, Any]:
        """The options, what the reference picture and the LoRAs hold, and which options had no use."""
        config = self.config
        picture = files.digest(Path(config.image)) if config.image else None
        loras = [files.digest(file) for lora in config.loras() for file in lora_files(lora.file)]
        now = {**config.mapping(), "image-sha256": picture, "lora-sha256": loras, "unused": list(config.unused)}
        told = [files.digest(file) for file in files_of(*resolve_inputs(config))]
        own = files.digest_of_code(Path(config.method.rpartition(":")[0])) if ".py:" in config.method else None
        look = files.digest(Path(find_look_decoder(config.model, config.look_decoder))) if config.look_decoder else None
        # Once the number of steps was rounded whatever the family: such a run must not go on with another.
        left = steps_run(config) if config.image and not config.mask else 0
        left = 0 if left == round(config.steps * (config.strength or 1)) else left
        beside = {"input-sha256": told, "method-code": own, "look-decoder-sha256": look, "steps-run": left}
        return now | {key: value for key, value in beside.items() if value}

    def read(self) -> dict[str, Any] | None:
        before = files.read_manifest(self.path)
        self.records = files.finished(self.path, before)
        self.told = before is None or not files.stale(before)
        return before

    def binds(self, before: Mapping[str, Any]) -> bool:
        return bool(self.records or before["summary"].get("images"))

    def difference(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        if key == "method-code" and before.get("method") == now.get("method"):
            return "whose method had other code: choose another --out"
        if key == "lora-sha256":
            return "whose LoRA had other weights: choose another --out"
        if key == "steps-run":
            return f"whose strength left another number of {now['steps']} steps than diffusers': choose another --out"
        if key == "input-sha256" and before.get("input") == now.get("input"):
            return "whose inputs were other pictures: choose another --out"
        if key == "image-sha256":
            if before.get("image") == now["image"]:
                return f"whose image {now['image']!r} was another picture: choose another --out"
            key = "image"
        return super().difference(key, before, now)

    def records_of(self, drawn: Drawn, judge: Judge | None) -> list[dict[str, Any]]:
        """One manifest entry per image of a group."""
        return records_of(drawn, judge)

    def summarise(self, records: list[dict[str, Any]], counts: Counts) -> dict[str, Any]:
        """The ``summary`` of the manifest."""
        return summarise(records, counts)

    @property
    def manifest(self) -> dict[str, Any]:
        return {**self.head, "images": [self.records[i] for i in sorted(self.records)], "summary": self.summary}

    def write(self) -> None:
        files.write_manifest(self.path, {**self.manifest, "images": files.IMAGES})

    @property
    def traced(self) -> list[int]:
        """The numbers of the images that have a trace."""
        return [number for number in sorted(self.records) if (self.path / files.TRACE_TOLD.format(number)).is_file()]

    @property
    def complete(self) -> bool:
        """Whether every image is there."""
        return len(self.records) == self.total

    @property
    def missing(self) -> list[int]:
        """The numbers of the images to draw: those that are not there, or those alone that are wanted."""
        wanted = self.config.wanted() or range(self.total)
        return [number for number in wanted if number not in self.records]

    @property
    def call(self) -> dict[str, Any]:
        """What this call found and did: images that were there, of how many, and what was paid for the others."""
        drawn = {"already": self.had, "total": self.total, "drawn": len(self.records) - self.had}
        paid = {key: value - getattr(self.began, key) for key, value in asdict(self.counts).items()}
        return {**drawn, **paid, "seconds": round(paid["seconds"], 3)}

    def begin(self, index: int = 0) -> None:
        """Make the folder and its first manifest; of one that is there, keep the records of the images that are whole.

        Args:
            index: of the process; all but the first only add, to a file of records of their own.
        """
        self._rewards, self._scored, self.added, self.lines = 0.0, 0, 0, self.path / files.part_of(index)
        if index:
            return
        self.counts = self.began = counts_of(self.summary)
        s = self.summary
        known = [r["reward"] for r in self.records.values() if r["reward"] is not None]
        self._rewards, self._scored = sum(known), len(known)
        if not s:
            self.summary = self.summarise([], self.counts)
        fresh = not (self.path / files.MANIFEST).exists()
        self.make()
        if not fresh:
            self._keep_records()
            self.sum_up()

    def _keep_records(self) -> None:
        """Write the records anew, in order, where some are torn, or of images that are not whole, or stand in an older
        manifest, or in files of other processes, which end then."""
        path = self.path / files.IMAGES
        lines = files.read_lines(path)
        records = [self.records[i] for i in sorted(self.records)]
        ordered = [line.get("file") for line in lines] == [record["file"] for record in records]
        if not ordered or (lines and path.read_bytes() != "".join(map(files.line, lines)).encode()):
            write_atomically(path, "".join(self._lines(records)).encode())
        for part in files.parts(self.path):
            with suppress(OSError):
                part.unlink()

    def collect(self, added: int | None = None) -> None:
        """Read back the records that were added, which are not held while images are drawn.

        Args:
            added: so many, by all processes, which have ended; what they have written becomes one file. None where some may
                still write.

        Raises:
            TiltingError: a file system of several machines does not show them within a minute.
        """
        before = len(self.records)
        for pause in (0, 1, 2, 4, 8, 16, 32):
            time.sleep(pause)
            manifest = files.read_manifest(self.path)
            assert manifest is not None
            self.records = {int(Path(record["file"]).stem): record for record in manifest["images"]}
            if len(self.records) >= before + (added or 0):
                break
        else:
            raise TiltingError(f"{str(self.path)!r} does not show what other machines have written: give the command again")
        self.counts = counts_of(manifest["summary"])
        if added is not None:
            self._keep_records()

    def add(self, drawn: Drawn, numbers: Sequence[int], judge: Judge | None, traces: Sequence[Trace] = ()) -> None:
        """Write a finished group: its traces, its pictures, then their records at the end of the others'."""
        records, told = [], {}
        for number, trace in zip(numbers, traces, strict=False):
            write_trace(self.path, number, trace)
            told[number] = {"kept": trace.kept, "parents": trace.parents()}
        for number, image, record in zip(numbers, drawn.images, self.records_of(drawn, judge), strict=True):
            name = files.image_name(number, self.config.format)
            write_atomically(self.path / name, picture_file(image, record, self.config.method, self.config.format))
            records.append({"file": name, **record, **told.get(number, {})})
        self.counts += drawn.counts
        append(self.lines, "".join(self._lines(records)).encode())
        self.added += len(records)
        known = [record["reward"] for record in records if record["reward"] is not None]
        self._rewards, self._scored = self._rewards + sum(known), self._scored + len(known)

    def _lines(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """The records as lines, the last with what the run has cost so far."""
        if not records:
            return []
        counts = self.counts
        spent = {key: getattr(counts, key) for key in ("evaluations", "decodes", "reward_calls")}
        last = {**records[-1], files.SPENT: {**spent, "seconds": round(counts.seconds, 3)}}
        return [files.line(record) for record in (*records[:-1], last)]

    @property
    def mean(self) -> float | None:
        """Mean of the rewards so far."""
        return self._rewards / self._scored if self._scored else None

    def sum_up(self) -> None:
        """Tell in the manifest what all images come to."""
        self.summary = self.summarise([self.records[i] for i in sorted(self.records)], self.counts)
        self.write()
        self.told = True
