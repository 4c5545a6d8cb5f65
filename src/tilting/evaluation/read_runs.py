"""Reads and validates runs from their folders, and finds the reference, the base and the floor among them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tilting.config.evaluate import EvaluateConfig
from tilting.config.generate import GenerateConfig
from tilting.disk import inner_path
from tilting.errors import TiltingError
from tilting.features.video import PICTURES
from tilting.models.inputs import input_pictures
from tilting.rewards.spec import split_weight
from tilting.runs.files import MANIFEST, keys_of, read_manifest, seeds_of, stale

SHOWN_PROMPTS = 12
"""Prompts that a suggested command spells out."""
CHANGES = ("lora", "control", "classifier")
"""Options by which method base draws from another model than the base model."""
SETTINGS = """model steps eta sde cfg negative-prompt images image strength height width frames precision
long-prompts format""".split()  # noqa: SIM905
"""What a run of the base model shares with the runs it is compared with."""


@dataclass(frozen=True)
class Run:
    """A folder that `tilting generate` wrote, and what its manifest says.

    Attributes:
        name: what reports call it: its folder's name, with parents where two are alike.
        folder: where its pictures are.
        manifest: as read and checked.
    """

    name: str
    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    @property
    def config(self) -> dict[str, Any]:
        """The options it was drawn with."""
        return self.manifest["config"]

    @property
    def records(self) -> list[dict[str, Any]]:
        """One entry per image."""
        return self.manifest["images"]

    @property
    def method(self) -> str:
        """How it was drawn."""
        return str(self.config.get("method"))

    @property
    def changed(self) -> str | None:
        """What draws otherwise than the base model by itself: the method, ``lora``, ``control``, ``classifier``; else None."""
        if self.method != "base":
            return f"method {self.method!r}"
        return next((f"a {key}" for key in CHANGES if self.config.get(key)), None)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the run."""
        return sorted({record["seed"] for record in self.records})

    def setting(self, key: str) -> Any:
        """An option of `SETTINGS`; ``strength`` is a picture's alone, as a control has one of its own. None is the usual one,
        which older runs do not say, nor a PNG's."""
        value = self.config.get(key) if key != "strength" or self.config.get("image") else None
        return None if value in (GenerateConfig.sde, "png") else value

    @property
    def kl(self) -> float | None:
        """Mean path KL to the base model, where it was recorded."""
        summary = self.manifest["summary"]
        return summary.get("kl", summary.get("kl_mean"))

    @property
    def prompts(self) -> list[str]:
        """The prompt of every image."""
        return [record["prompt"] for record in self.records]

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(prompt, which of its images) of every image: of several seeds, one after another."""
        return keys_of(self.records)

    @property
    def weights(self) -> dict[str, float]:
        """The rewards it was steered by, or scored with, without their weights, and those, added up where one stands twice."""
        weights: dict[str, float] = {}
        for bare, weight in map(split_weight, self.config.get("reward") or []):
            weights[bare] = weights.get(bare, 0.0) + weight
        return weights


@dataclass(frozen=True)
class Setup:
    """Runs and their parts in the comparison.

    Attributes:
        runs: all, the reference too (last, when it was given by option alone).
        reference: the name of the run, or of the folder of pictures, that distances are taken to, or None.
        bases: for every run that is steered, the name of the base run it is judged against, or None.
        floor: the name of the base run whose distance to the reference is the floor, or None.
        notes: sentences for the reader.
        pictures: those of a reference that is no run.
        no_distances: how to get a reference, where there is none.
    """

    runs: tuple[Run, ...]
    reference: str | None
    bases: dict[str, str | None]
    floor: str | None
    notes: tuple[str, ...]
    pictures: tuple[Path, ...] = ()
    no_distances: str | None = None

    @cached_property
    def inputs(self) -> dict[str, Path]:
        """Prompt -> the picture that the steered runs' images of it were made of (all runs', where none is steered), if it is
        one, and still there."""
        of = [run for run in self.runs if run.name in self.bases] or self.runs
        found = [set(input_pictures(run.config).items()) for run in of]
        return dict(sorted(set.intersection(*found)))

    @property
    def picture(self) -> str | None:
        """The one picture that all of them were made of, if there is one."""
        pictures = set(self.inputs.values()) if len(self.inputs) == len(set(self.runs[0].prompts)) else set()
        return str(pictures.pop()) if len(pictures) == 1 else None

    def run(self, name: str) -> Run:
        """The run of a name."""
        return next(run for run in self.runs if run.name == name)


def read_run(path: str, name: str) -> Run:
    """Read a run back. Raises TiltingError: not a run's folder, an image missing, or not one drawn."""
    folder = Path(path)
    if not folder.is_dir():
        raise TiltingError(f"there is no folder {path!r}")
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
    if manifest is None:
        inside = [str(file.parent) for file in sorted(folder.glob("runs/*/manifest.json"))]  # as `tilting compare` writes them
        near = f"; there is: {', '.join(inside)}" if inside else ""
        raise TiltingError(f"{path!r} is not a run: it holds no manifest.json of `tilting generate`{near}")
    if not manifest["images"]:
        raise TiltingError(f"{path!r} holds no finished image")
    seen = set()
    for record in manifest["images"]:
        try:
            file = inner_path(folder, record["file"], "picture", nested=True)
        except TiltingError as error:
            raise TiltingError(f"the manifest of {path!r} names a picture that lies outside it: {error}") from None
        if not file.is_file():
            raise TiltingError(f"{path!r} lacks {record['file']!r}, which its manifest names")
        if (key := (record["prompt"], record["index"], record["seed"])) in seen:
            raise TiltingError(f"the manifest of {path!r} names image {key[1]} of {key[0]!r} twice")
        seen.add(key)
    wanted = (
        len(manifest["config"].get("prompts") or [])
        * (manifest["config"].get("images") or 1)
        * len(seeds_of(manifest["config"]))
    )
    if len(manifest["images"]) < wanted:
        done = len(manifest["images"])
        raise TiltingError(f"{path!r} is unfinished, {done} of {wanted} images: give its `tilting generate` command again")
    if stale(manifest):
        raise TiltingError(f"{path!r} is unfinished, its summary is of fewer images: give its command again")
    return Run(name, folder, manifest)


def plain_pictures(path: str) -> tuple[Path, ...]:
    """The pictures of a folder that is no run, in order; none of a run's. Raises TiltingError for a folder without either."""
    folder = Path(path)
    if not folder.is_dir():
        raise TiltingError(f"there is no folder {path!r}")
    if (folder / MANIFEST).exists() or any(folder.glob("runs/*/manifest.json")):
        return ()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if len(files) < 2:
        raise TiltingError(
            f"the reference {path!r} is not a run, and holds {'one picture' if files else 'no picture'}: give a base run, or a "
            f"folder of 2 pictures or more ({', '.join(PICTURES[:4])})"
        )
    return tuple(files)


def _names(folders: Sequence[str]) -> list[str]:
    """The shortest tails of paths that tell them apart."""
    parts = [Path(os.path.realpath(path)).parts for path in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise TiltingError("a run is given twice: name every folder once")


def setup(config: EvaluateConfig) -> Setup:
    """Read the runs of a request and give each its part.

    Raises:
        TiltingError: what `read_run` refuses, runs of different prompts, or a reference that cannot be one.
    """
    folders = list(config.runs)
    chosen = None
    if config.reference is not None and (pictures := plain_pictures(config.reference)):
        *names, reference = _names([*folders, config.reference])
        runs = _alike(folders, names)
        note = f"The {len(pictures)} pictures of {reference} have no prompts: there are no distances to them prompt by prompt."
        bases = {run.name: _base(run, runs, None) for run in runs if run.changed}
        return Setup(runs, reference, bases, None, (note, *_differences(runs, None, bases)), pictures)
    if config.reference is not None:
        there = os.path.realpath(config.reference)
        same = [i for i, path in enumerate(folders) if os.path.realpath(path) == there]
        chosen = same[0] if same else len(folders)
        folders += [] if same else [config.reference]
    runs = _alike(folders, _names(folders))
    reference = _reference(runs) if chosen is None else runs[chosen]
    if reference is not None and chosen is not None:
        _check_reference(reference, runs)
    others = [run for run in runs if run is not reference]
    base = {run.name: _base(run, others, reference) for run in others if run.changed}
    floor = next((run for run in others if not run.changed), None) if reference else None
    name, ground, notes = reference and reference.name, floor and floor.name, _differences(runs, reference, base)
    return Setup(runs, name, base, ground, notes, no_distances=None if reference else no_reference(config, runs))


def _alike(folders: Sequence[str], names: Sequence[str]) -> tuple[Run, ...]:
    """Runs of the same prompts. Raises TiltingError."""
    runs = tuple(read_run(path, name) for path, name in zip(folders, names, strict=True))
    first = runs[0]
    for run in runs[1:]:
        if set(run.prompts) != set(first.prompts):
            odd = min(set(run.prompts) ^ set(first.prompts))
            raise TiltingError(f"{first.name!r} and {run.name!r} are of different prompts: only one of them has {odd!r}")
    return runs


def _reference(runs: Sequence[Run]) -> Run | None:
    """The last base run whose noise no other run shares, if there is one and another run to compare with it."""
    fit = [run for run in runs if not run.changed and not any(set(o.seeds) & set(run.seeds) for o in runs if o is not run)]
    return fit[-1] if fit and len(runs) > 1 else None


def _check_reference(reference: Run, runs: Sequence[Run]) -> None:
    if reference.changed:
        raise TiltingError(f"--reference must be a run of method base alone, and {reference.name!r} has {reference.changed}")
    for run in runs:
        if run is not reference and set(run.seeds) & set(reference.seeds):
            raise TiltingError(
                f"the reference {reference.name!r} has the seed of {run.name!r}, and so its noise: draw it with another seed"
            )


def _base(run: Run, others: Sequence[Run], reference: Run | None) -> str | None:
    """The base run to judge a run against: of the same seed, else any, else the reference."""
    bases = [other for other in others if not other.changed]
    paired = [other for other in bases if other.seeds == run.seeds]
    return next((other.name for other in (*paired, *bases, *([reference] if reference else []))), None)


def _differences(runs: Sequence[Run], reference: Run | None, bases: Mapping[str, str | None]) -> tuple[str, ...]:
    """What else than the method tells runs from the reference, or where there is none, from their base."""
    judged = [(base, [run for run in runs if bases.get(run.name) == base.name]) for base in runs]
    notes = []
    for one, others in judged if reference is None else [(reference, runs)]:
        kind = "reference" if one is reference else "base run"
        for key in SETTINGS:
            odd = [run.name for run in others if run.setting(key) != one.setting(key)]
            if odd:
                differ = f"{', '.join(odd)} and the {kind} {one.name} differ in {key}"
                notes.append(f"{differ}: that is not the method's doing alone.")
    return tuple(notes)


def no_reference(config: EvaluateConfig, runs: Sequence[Run]) -> str:
    """The sentence that says how to get distances."""
    argv = [str(word) for word in runs[0].manifest.get("argv") or []]
    file = argv[argv.index("--prompts") + 1] if "--prompts" in argv[:-1] else None
    words = list(dict.fromkeys(runs[0].prompts))
    prompts = ["--prompts", file] if file else words if len(words) <= SHOWN_PROMPTS else ["--prompts", "PROMPTS.txt"]
    seed = 1 + max(seed for run in runs for seed in run.seeds)
    command = ["tilting", "generate", *prompts, "--method", "base"]
    for key in SETTINGS:
        value = runs[0].setting(key)
        if value not in (None, ""):
            command += [f"--{key}", f"{value:g}" if isinstance(value, float) else str(value)]
    if "reward" not in (runs[0].config.get("python") or ()):  # one that no command says
        command += [word for spec in runs[0].config.get("reward") or [] for word in ("--reward", spec)]
    folder = f"base-seed{seed}"
    return (
        "Distances need a second run of the base model, with noise no other run has: "
        f"{shlex.join([*command, '--seed', str(seed), '--out', folder])}, then give --reference {folder}."
    )
