"""The one process that draws for the page, with models that stay loaded: `python -m tilting.studio.worker`.

It reads requests as lines of JSON and answers with lines of JSON, the last of each request ``{"end": ...}``; it ends when
nobody writes to it any more. It calls what `tilting generate` calls.
"""

from __future__ import annotations

import json
import math
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from tilting.conditioning.dataset import read_data
from tilting.conditioning.readings import with_readings
from tilting.conditioning.sample_run import Loaded, SampleFolder
from tilting.config.auto import AUTO, Budget, choose
from tilting.config.condition_fit import FitConfig
from tilting.config.condition_sample import SampleConfig
from tilting.config.generate import GenerateConfig
from tilting.cost import cost
from tilting.errors import TiltingError, refusal_of
from tilting.features.video import frames_of
from tilting.generation.auto import settled, told
from tilting.generation.folder import Folder
from tilting.generation.generate import Drawn, draw, records_of, summarise
from tilting.generation.plan import identities
from tilting.generation.run import Parts, load_parts, plan_of
from tilting.generation.score import Counts
from tilting.generation.trace import Recorder
from tilting.lazy import hush
from tilting.models import load
from tilting.models.attach import attach_all
from tilting.models.control_spec import FILE as CONTROL
from tilting.models.control_spec import find_control
from tilting.reports.grid import write_grid
from tilting.reports.pages import inlined
from tilting.reports.trace import Trace
from tilting.reports.trace_page import page, write_page
from tilting.rewards.spec import Spec, build
from tilting.runs.lock import exclusive

if TYPE_CHECKING:
    from tilting.generation.run import Reward

Answer = dict[str, Any]
KINDS: dict[str, tuple[type[GenerateConfig], type[Folder]]] = {
    "generate": (GenerateConfig, Folder),
    "condition sample": (SampleConfig, SampleFolder),
}
MOST, LOOKS, TRACED = 16, 16, 4
"""Estimates shown of a step; looks at them in a run, at least where each is of a step; images whose trace is shown."""
PAUSE = 1.5
"""Seconds between two traces of a run that goes on."""
MODELS = 2
"""Maximum number of models that stay loaded."""


class Worker:
    """What is loaded, and what was drawn last."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.rewards: dict[str, Reward] = {}
        self.stacked: set[str] = set()
        self.controls: dict[str, Any] = {}
        self.rates: dict[tuple[str, str], float] = {}
        self.last: tuple[Any, GenerateConfig, type[Folder], list[tuple[Drawn, list[Answer], list[Trace]]]] | None = None
        self.stopping = threading.Event()

    def model(self, *args: Any, **how: Any) -> Any:
        """A model as `tilting.models.load` gives it, the same one again for the same words, without the LoRAs that it had."""
        key = repr((args, how))
        if key in self.stacked:
            attach_all(self.models[key], (), 1)
            self.stacked.remove(key)
        if key not in self.models:
            for old in list(self.models)[: len(self.models) - MODELS + 1]:
                del self.models[old]
            self.controls.clear()
            self.models[key] = load(*args, **how)
        self.models[key] = self.models.pop(key)  # the last used is the last to go
        return self.models[key]

    def reward(self, specs: Sequence[Spec]) -> Reward:
        """The reward of specs, loaded once; one of a user's file is read each time, for it may have changed."""
        if any(spec.is_file for spec in specs):
            return build(specs)
        key = " ".join(spec.text for spec in specs)
        if key not in self.rewards:
            self.rewards[key] = build(specs)
        return self.rewards[key]

    def parts(self, config: GenerateConfig) -> tuple[Parts, Loaded]:
        """What a request needs, and of a control what looks at its images."""
        parts = load_parts(config, self.model, self.reward)
        if config.lora:
            self.stacked.add(next(reversed(self.models)))
        loaded = Loaded(parts, {config.reward: parts.reward})
        if not isinstance(config, SampleConfig):
            return parts, loaded
        now = {folder: os.stat(find_control(folder) / CONTROL).st_mtime_ns for folder in config.control}
        loaded.controls = {folder: found for folder, (found, then) in self.controls.items() if now.get(folder) == then}
        parts = loaded.load(config)
        self.controls |= {folder: (loaded.controls[folder], when) for folder, when in now.items()}
        return parts, loaded

    def cost(self, command: str, asked: Mapping[str, Any]) -> Iterator[Answer]:
        """What a request will pay, and about how many seconds that takes here, where something like it was drawn before."""
        config = KINDS[command][0].resolve(asked)
        count = len(config.prompts) * len(config.seeds) * config.images
        if config.method == AUTO:
            budget = Budget.read(config.budget)
            if budget.timed:
                yield {"why": "auto: the method is taken at the start", "seconds": budget.amount * count}
                return
            gradient = all(one.entry.differentiable if one.entry else build([one]).differentiable for one in config.specs())
            choice = choose(int(budget.amount), config.steps, gradient)
            config = told(config, choice.options, choice.why)
        paid = cost(*config.built())
        rate = self.rates.get((config.model, config.method)) or self.rates.get((config.model, "base"))
        at_most = paid.evaluations * count
        seconds = None if rate is None else rate * at_most
        yield {"evaluations": at_most, "values": paid.values * count, "seconds": seconds, "why": "".join(config.auto[1:])}

    def draw(self, command: str, asked: Mapping[str, Any]) -> Iterator[Answer]:
        """Draw, telling every step: its reward and, as often as that is cheap, the estimates; then the pictures."""
        kind, folder = KINDS[command]
        config = kind.resolve(asked)
        parts, loaded = self.parts(config)
        if config.method == AUTO:
            config = settled(config, parts.model, parts.reward)
        request = plan_of(config, identities(config.prompts, config.seeds, config.images), parts)
        every = config.trace_every if config.trace else math.ceil(request.ticks / LOOKS)
        recorder = Recorder(parts.model, request, every)
        kept: list[tuple[Drawn, list[Answer], list[Trace]]] = []
        shown, seen = time.monotonic(), None
        for event in draw(parts.model, request, later=False):
            traces = recorder(event)
            if self.stopping.is_set():
                yield {"stopped": True}
                return
            if isinstance(event, Drawn):
                rows = records_of(event, parts.judge)
                if isinstance(config, SampleConfig):
                    rows = with_readings(rows, event.images, loaded.watcher.kl, loaded.tests)
                kept.append((event, rows, traces))
                pictures = [inlined(frames_of(image)[0], lossless=True) for image in event.images]
                yield {
                    "drawn": [{**row, "picture": picture} for row, picture in zip(rows, pictures, strict=True)],
                    "trace": page(traces[:TRACED], f"How {config.method} drew"),
                }
                continue
            look = recorder.seen[-1] if recorder.seen else None
            answer: Answer = {"step": event.step, "steps": event.steps, "group": event.group, "groups": event.groups}
            answer |= {"values": None, "parents": None}
            if look is not None and look is not seen:
                seen = look
                answer |= {"values": look.values, "parents": look.parents}
                answer |= {} if look.thumbs is None else {"seen": _pictures(look.thumbs, look.count)}
            yield answer
            if time.monotonic() - shown > PAUSE and seen is not None:
                yield {"trace": page(recorder.so_far()[:1], f"{config.method}, step {event.step} of {event.steps}")}
                shown = time.monotonic()
        self.last = ((command, asked), config, folder, kept)
        counts = sum((event.counts for event, _, _ in kept), Counts())
        if counts.evaluations:
            self.rates[config.model, config.method] = counts.seconds / counts.evaluations
        yield {"summary": summarise([row for _, rows, _ in kept for row in rows], counts)}

    def save(self, command: str, asked: Mapping[str, Any], out: str, words: list[str]) -> Iterator[Answer]:
        """Write what was drawn last, which is to be this request, as the folder that its command would write."""
        if self.last is None:
            raise TiltingError("nothing is drawn yet: draw first")
        request, config, kind, kept = self.last
        if request != (command, asked):
            raise TiltingError("something else was drawn since, on another tab or page: draw this again, and save it then")
        new = not os.path.exists(out)
        try:
            with exclusive(out):
                place = kind(replace(config, out=out), words)
                numbers = {who: i for i, who in enumerate(identities(config.prompts, config.seeds, config.images))}
                place.begin()
                for event, rows, traces in kept:
                    place.records_of = lambda drawn, judge, rows=rows: rows  # they are read already
                    place.add(event, [numbers[who] for who in event.who], None, traces if config.trace else ())
                place.collect(place.added)
                place.sum_up()
                write_grid(place.path, place.manifest)
                if config.trace:
                    write_page(place.path, place.traced, f"How {config.method} drew")
        except BaseException:
            if new:  # what was drawn is still here, to be saved elsewhere or later
                shutil.rmtree(out, ignore_errors=True)
            raise
        yield {"saved": out}

    def look(self, asked: Mapping[str, Any]) -> Iterator[Answer]:
        """What a table or folder of labelled pictures holds: its labels, and how many pictures each of their classes has."""
        data = read_data(FitConfig.resolve(asked))
        learn, _ = data.split(0)
        labels = []
        for column in data.columns:
            values = [one.labels[column.name] for one in data.records if one.labels[column.name] is not None]
            found = Counter(values) if column.classes else {}
            row = {"label": column.name, "kind": column.kind, "classes": {name: found[name] for name in column.classes}}
            labels.append(row | {"range": [] if column.classes else [min(values), max(values)], "known": len(values)})
        yield {"labels": labels, "pictures": len(data.records), "told": [*data.bad[:3], *data.told(learn)]}

    def load(self, model: str) -> Iterator[Answer]:
        """Load a model, and draw so little that it is warm and its speed is known."""
        yield from self.draw("generate", {"prompts": ["a fox"], "model": model, "steps": 3})
        self.last = None


def _pictures(thumbs: Any, count: int) -> list[list[str]]:
    """Estimates (b·n, h, w, 3) as pictures, a row for each image, the first of them."""
    rows = [thumbs[i : i + count][:MOST] for i in range(0, len(thumbs), count)][: max(1, MOST // count)]
    return [[inlined(Image.fromarray(one)) for one in row] for row in rows]


def serve(lines: Iterator[str], say: Callable[[Answer], None]) -> None:
    """Answer requests until there are no more."""
    worker, asked = Worker(), queue.Queue[Any]()
    verbs = {name: getattr(worker, name) for name in ("cost", "draw", "save", "look", "load")}

    def listen() -> None:
        for line in lines:
            request = json.loads(line)
            if request.get("do") == "stop":
                worker.stopping.set()
            else:
                asked.put(request)
        worker.stopping.set()
        asked.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (request := asked.get()) is not None:
        worker.stopping.clear()
        end: Answer = {"end": True}
        try:
            for answer in verbs[request.pop("do")](**request):
                say(answer)
        except TiltingError as error:
            end["refused"] = str(error)
        except OSError as error:
            end["refused"] = refusal_of(error) or f"{type(error).__name__}: {error}"
        except Exception as error:
            traceback.print_exc()
            end["refused"] = f"this is our fault, and the worker's log has more: {type(error).__name__}: {error}"
        say(end)


def main() -> None:
    hush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    with suppress(BrokenPipeError, KeyboardInterrupt):
        serve(sys.stdin, say)


if __name__ == "__main__":
    main()
