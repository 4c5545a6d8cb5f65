"""`tilting compare`: methods side by side on the same prompts, rewards and noise, as one page. Importing this is torch-free.

Every method's run is a folder of `tilting generate`, DIR/runs/METHOD, of one seed: image (prompt, index) starts from the same
x_T whatever the method, so differences are paired. Gains are means of r_method - r_reference over images, with the
interval of a bootstrap that resamples whole prompts (`tilting.metrics.statistics.paired_bootstrap`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tilting.config.generate import OPTIONS as OF_GENERATE
from tilting.config.generate import GenerateConfig, resolve
from tilting.config.settings import setting, text, texts
from tilting.config.yaml_file import SWITCHES, flat
from tilting.errors import TiltingError, nearest
from tilting.generation.run import Folder, Parts, load_parts, plan_missing, run
from tilting.presets import PRESETS
from tilting.runs import files
from tilting.runs.owner import COMPARISON, folder_of
from tilting.version import __version__

OPTIONS = (*(o for o in OF_GENERATE if o not in ("method", "published")), "methods")
"""Steps are the same for all, so that runs pair: settings of papers are given by ``--set``."""
USUAL = ("base", "bon", "code", "codex")
"""Methods where none are named."""
FEW = 10
"""Prompts, below which intervals of a bootstrap are called rough."""
METRICS, PAGE, SHEET = "metrics.json", "compare.html", "compare.png"


@dataclass(frozen=True)
class CompareConfig:
    """A checked request.

    Attributes:
        runs: what each method is to draw, into DIR/runs/METHOD; they differ in method, settings, particles and eta alone.
        out: DIR.
        given: particles, eta and settings as they were asked for.
        unused: options that no method has a use for.
    """

    runs: tuple[GenerateConfig, ...]
    out: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(run.method for run in self.runs)

    def mapping(self) -> dict[str, Any]:
        """By option name, of plain YAML and JSON values; `resolve_compare` of it gives the same runs."""
        plain = {key: value for key, value in self.runs[0].mapping().items() if key != "method"}
        settings: dict[str, Any] = {}
        for one in self.runs:
            settings |= one.mapping()["set"]
            key = f"{one.method}.particles"
            settings |= {key: one.particles} if key in self.given["set"] else {}
        own = {"methods": list(self.methods), "particles": self.given["particles"], "eta": self.given["eta"]}
        return {**plain, **own, "out": self.out, "set": settings}

    def yaml(self) -> str:
        """The config as a YAML file that ``--config`` reads back."""
        return yaml.safe_dump(self.mapping(), sort_keys=False, allow_unicode=True, width=120)


def resolve_compare(options: Mapping[str, Any]) -> CompareConfig:
    """Check a request, before torch is imported.

    Args:
        options: by option name, as `tilting.config.generate.resolve` has them, and ``methods``: a list, or names
            between commas.

    Raises:
        TiltingError: one sentence that names the option, or the method that cannot be run so.
    """
    given = {key: value for key, value in options.items() if value is not None and key not in SWITCHES}
    methods = _methods(given.pop("methods", list(USUAL)))
    out = text("out", given.pop("out")) if "out" in given else None
    settings: dict[str, Any] = {}
    for key, value in flat(given.pop("set", {})).items():
        settings[key] = setting(key, value)[2]
    resolve({**given, "method": "base"})  # what is wrong for every method is said without naming one
    runs = []
    for method in methods:
        own = {key: value for key, value in settings.items() if key.startswith(f"{method}.")}
        place = None if out is None else str(Path(out) / "runs" / method)
        try:
            runs.append(resolve({**given, "method": method, "set": own, "out": place}))
        except TiltingError as error:
            raise _named(method, error) from None
    useless = set.intersection(*(set(one.unused) for one in runs))
    unused = [key for key in settings if key.partition(".")[0] not in methods] + sorted(useless)
    asked = {"particles": given.get("particles"), "eta": given.get("eta"), "set": settings}
    return CompareConfig(tuple(runs), out, asked, tuple(unused))


def _methods(value: object) -> list[str]:
    """Names from a list, or from one text with commas. Raises TiltingError."""
    names = [name.strip() for part in texts("methods", value) for name in part.split(",") if name.strip()]
    if not names:
        raise TiltingError("no method is named: --methods base,code,codex")
    for i, name in enumerate(names):
        if name not in PRESETS:
            raise TiltingError(f"there is no method {name!r}{nearest(name, PRESETS)}")
        if name in names[:i]:
            raise TiltingError(f"the method {name!r} is named twice in --methods")
    return names


def _named(method: str, error: TiltingError) -> TiltingError:
    """The refusal, with the method's name in front where it does not say it."""
    return error if str(error).startswith((f"{method} ", f"method {method} ")) else TiltingError(f"{method}: {error}")


def compare(
    config: CompareConfig, argv: Sequence[str] = (), quiet: bool = False,
    parts: Callable[[GenerateConfig], Parts] = load_parts,
) -> dict[str, Any]:  # fmt: skip
    """Draw what is missing of every method's run, and write compare.html, compare.png and metrics.json.

    Args:
        config: from `resolve_compare`; ``out`` must be set.
        argv: the command, for the record.
        quiet: no progress bars.
        parts: what loads model, reward and judge, once for all methods; not called when nothing is missing.

    Returns:
        What metrics.json holds (see `measure`).

    Raises:
        TiltingError: before anything is drawn or written, for a folder or a method that cannot work.
        RewardError: if the reward fails; images finished before stay, and the comparison resumes.
    """
    folder = folder_of(config.out, COMPARISON)
    missing = [place for place in (Folder(one, argv) for one in config.runs) if not place.complete]
    loaded = parts(next((p.config for p in missing if p.config.preset().climbs), missing[0].config)) if missing else None
    for place in missing:
        assert loaded is not None
        try:
            plan_missing(place, loaded)
        except TiltingError as error:
            raise _named(place.config.method, error) from None
    manifests = {one.method: run(one, argv, quiet, lambda _: loaded or parts(one)) for one in config.runs}
    metrics = {"version": __version__, "argv": list(argv), "config": config.mapping(), **measure(manifests)}
    metrics["unused"] = list(config.unused)
    from tilting.evaluation.compare_page import render, write_sheet

    write_sheet(folder, metrics)
    files.write_atomically(folder / PAGE, render(folder, metrics).encode())
    text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files.write_atomically(folder / METRICS, text.encode())
    return metrics


def measure(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of finished runs of the same prompts and noise.

    Args:
        manifests: by method, in order.

    Returns:
        reference: the method that gains are against, ``base`` where it is among them, else the first. methods: of each its
        reward and judge {mean, sem} over images (or null), costs per image and in total, ``gain`` and ``judge_gain``
        {mean, low, high} of the paired difference to the reference (null for itself), ``wins``, the share of images whose
        reward is above the reference's. images: of every (prompt, index) the file, reward and judge by method.
    """
    reference = "base" if "base" in manifests else next(iter(manifests))
    keyed = {m: {(r["prompt"], r["index"]): r for r in manifest["images"]} for m, manifest in manifests.items()}
    keys = list(keyed[reference])
    rows = []
    for method, manifest in manifests.items():
        summary, n = manifest["summary"], len(keys)
        ours, theirs = ([keyed[m][key] for key in keys] for m in (method, reference))
        row: dict[str, Any] = {"method": method, "folder": f"runs/{method}", "particles": manifest["config"]["particles"]}
        for key, gain in (("reward", "gain"), ("judge", "judge_gain")):
            row[key] = _mean([r[key] for r in ours])
            row[gain] = None if method == reference else _gain(ours, theirs, key)
        pairs = [(a["reward"], b["reward"]) for a, b in zip(ours, theirs, strict=True)]
        known = method != reference and all(None not in pair for pair in pairs)
        row["wins"] = sum(a > b for a, b in pairs) / n if known else None
        for key in ("evaluations", "decodes", "reward_calls", "seconds"):
            row[key], row[f"{key}_per_image"] = summary[key], summary[key] / n
        rows.append(row)
    shown = [
        {"prompt": prompt, "index": index, "methods": {
            m: {"file": f"runs/{m}/{r['file']}", "reward": r["reward"], "judge": r["judge"]}
            for m, r in ((m, keyed[m][prompt, index]) for m in manifests)
        }} for prompt, index in keys
    ]  # fmt: skip
    return {"reference": reference, "methods": rows, "images": shown}


def _mean(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Mean and standard error over images; None where there is no value."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    spread = sum((v - mean) ** 2 for v in known) / (len(known) - 1) if len(known) > 1 else None
    return {"mean": mean, "sem": None if spread is None else (spread / len(known)) ** 0.5}


def _gain(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], key: str) -> dict[str, float] | None:
    """The paired difference over images that both have a value of; with its interval."""
    from tilting.metrics.statistics import paired_bootstrap

    both = [(a[key], b[key], a["prompt"]) for a, b in zip(ours, theirs, strict=True) if None not in (a[key], b[key])]
    if not both:
        return None
    a, b, prompts = (list(column) for column in zip(*both, strict=True))
    several = len(set(prompts)) > 1
    return paired_bootstrap(a, b, prompts if several else None)._asdict()


def describe(metrics: Mapping[str, Any]) -> str:
    """The table for people: a line per method, costs per image."""
    reference = metrics["reference"]
    rows = [["method", "reward", "judge", "evaluations", "seconds", f"gain over {reference} [95 %]", "wins"]]
    for row in metrics["methods"]:
        reward, gain = row["reward"], row["gain"]
        mean = "-" if reward is None else f"{reward['mean']:.4f}"
        mean += f" ± {reward['sem']:.4f}" if reward and reward["sem"] is not None else ""
        judge = "-" if row["judge"] is None else f"{row['judge']['mean']:.2f}"
        change = "-" if gain is None else f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"
        wins = "-" if row["wins"] is None else f"{row['wins']:.0%}"
        cost = (f"{row['evaluations_per_image']:.4g}", f"{row['seconds_per_image']:.2f}")
        rows.append([row["method"], mean, judge, *cost, change, wins])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    images = len(metrics["images"])
    said = f"{images} image{'s' if images > 1 else ''} per method, of the same noise; costs are per image"
    few = "; few prompts, so the intervals are rough" if len({entry["prompt"] for entry in metrics["images"]}) < FEW else ""
    return "\n".join([*lines, said + few])
