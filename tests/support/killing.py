"""Commands that are killed at each point where they write, and given again: `python -m support.killing COMMAND...`, in a folder
that `prepare` has filled.

A write point is a moment at which Python opens a file for writing, flushes one to the disk (fsync), renames, removes, or makes
or removes a folder, in --out or beside it. Children are forked after the imports, with the model read. Of all points those are
tried whose number is I modulo N, by $KILL_PART=I/N; unless told, a tenth, by the day. Their number is printed.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
MODEL = "--model small --steps 2 --quiet"
TRAINED = f"--train-steps 2 --batch-size 1 --rank 1 --checkpoint-every 1 {MODEL}"
FIT = "condition fit --kind cnn --size 8 --widths 4,4,8 --data labels.csv --epochs 1 --quiet"
SAMPLED = "--sample-images 1 --sample-every 1 --early-stop 2"
COMMANDS = {
    "generate": f"generate a-fox an-owl --images 1 --batch-size 1 --reward r.py:bright {MODEL}",
    "compare": f"compare a-fox --methods base,bon --particles 2 --images 1 --reward r.py:bright {MODEL}",
    "evaluate": "evaluate drawn again --quiet",
    "finetune": f"finetune a-fox --reward r.py:bright --judge r.py:dark {SAMPLED} {TRAINED}",
    "condition fit": FIT,
    "condition train": f"condition train a-fox --classifier fit {TRAINED}",
    "condition sample": f"condition sample a-fox --control control --label bright=yes --strength 0,1 --images 1 {MODEL}",
    "recipe": "recipe tiny --small --quiet",
}
"""Each without --out, of two steps or fewer."""
BEFORE = {
    "evaluate": [f"generate a-fox --images 2 {MODEL} --out drawn", f"generate a-fox --images 2 --seed 1 {MODEL} --out again"],
    "condition train": [f"{FIT} --label bright --out fit"],
    "condition sample": [f"{FIT} --label bright --out fit", f"condition train a-fox --classifier fit {TRAINED} --out control"],
}
"""What a command reads, by the commands that make it."""


def prepare(folder: Path) -> None:
    """A small model, a file of rewards and a table of labelled pictures."""
    import numpy as np
    from PIL import Image

    from support.finetuning import REWARDS
    from support.small import write_small

    write_small(folder / "small")
    (folder / "r.py").write_text(REWARDS)
    draw, rows = np.random.default_rng(0), ["file,bright,red"]
    for i in range(30):
        pixels = draw.integers(0, 128, (8, 8, 3)) + 100 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'yes' if i % 2 else 'no'},{'a' if i % 3 else 'b'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def warm() -> None:
    """Import what commands import, read the models once for all children, and add a recipe that is smaller than --small. Charts
    are compared by their names alone, and not drawn."""
    for module in ("generation.run", "evaluation.run", "evaluation.compare", "training.run", "conditioning.fit_run"):
        __import__(f"tilting.{module}")
    for module in ("tilting.conditioning.train_run", "tilting.conditioning.sample_run", "tilting_papers.codex.measure"):
        __import__(module)
    from functools import cache

    import pytest
    from tqdm import tqdm

    from support.charts import undrawn
    from tilting.config.recipe import RECIPES
    from tilting.models import build, load
    from tilting_papers.codex import draw
    from tilting_papers.codex.table import Row, Size, Table

    tqdm.monitor_interval = 0  # no thread of it is alive at a fork
    tqdm.set_lock(
        threading.RLock()
    )  # its own is shared by all children: one that is killed within a bar would hold it for ever
    inner = build.load_pipeline
    read = cache(lambda source, dtype: inner(source, dtype, ("safety_checker",)))
    build.load_pipeline = lambda source, dtype, *more: read(source, dtype)
    load("small")
    undrawn(pytest.MonkeyPatch())
    draw.SMALL = Size(prompts=1, images=2, steps=2, references=0)
    rows = (Row("base", "base"), Row("bon", "bon", 2))
    RECIPES.register(
        Table(
            name="tiny",
            about="one",
            paper="none",
            prompts=("a fox",),
            reward=("jpeg",),
            units={"jpeg": "bytes"},
            rows=rows,
            model="small",
        )
    )


def forked(words: list[str], stop: int = 0, largest: int | None = None) -> int:
    """The exit status of a command in a child, which kills itself at its write point of that number, from 1; what it says is
    added to log.txt, how many points there were stands in points.txt, what it has imported in modules.txt. No file may grow to
    more than ``largest`` bytes, which a write is told as on a full disk."""
    pid = os.fork()
    if pid == 0:
        child(words, stop, largest)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def child(words: list[str], stop: int = 0, largest: int | None = None, told: bool = True) -> None:
    """The end of a forked process, which is a command; ``told`` is whether it writes what its points and modules are."""
    os.dup2(os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    seen = _kill_at(stop, os.path.abspath(words[words.index("--out") + 1]))
    from tilting.cli import main

    code = main(words)
    if largest is not None or not told:
        os._exit(code)
    Path("points.txt").write_text(str(len(seen)))
    Path("modules.txt").write_text("\n".join(sys.modules))
    os._exit(code)


def _kill_at(stop: int, root: str) -> list[str]:
    """What will hold the write points of this process, of which that number is its end."""
    beside = os.path.join(os.path.dirname(root), f".{os.path.basename(root)}.")
    seen: list[str] = []

    def point(what: str) -> None:
        seen.append(what)
        if len(seen) == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple) -> None:
        if event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITES):
            places = [arg for arg in args[:2] if isinstance(arg, str | bytes | os.PathLike)]
            if any(os.path.abspath(os.fsdecode(place)).startswith((root, beside)) for place in places):
                point(event)

    flush = os.fsync

    def fsync(file: int) -> None:
        point("fsync")
        flush(file)

    os.fsync = fsync
    sys.addaudithook(hook)
    return seen


def held(folder: Path) -> dict[str, object]:
    """What a folder holds, without times; pages and what a tracker writes by their names alone."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "tensorboard" not in p.parts):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text().replace(str(folder), "DIR")))
        elif path.suffix == ".jsonl":
            found[name] = None if path.name == "timing.jsonl" else [_timeless(json.loads(line)) for line in path.open()]
        else:
            picture = path.suffix == ".png" and path.parent.name == "images"
            found[name] = path.read_bytes() if picture or path.suffix == ".safetensors" else None
    return found


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if "second" not in k and k not in ("argv", "out", "read")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def part() -> tuple[int, int]:
    """(I, N) of $KILL_PART; the day's tenth."""
    told = os.environ.get("KILL_PART", f"{date.today().toordinal() % 10}/10")
    index, count = map(int, told.split("/"))
    return index % count, count


def uninterrupted(command: str, whole: Path) -> dict[str, object]:
    """What the folder of a whole run holds; what the command reads is made before it, and what it imports is imported here."""
    shutil.rmtree(whole.parent, ignore_errors=True)
    for before in BEFORE.get(command, ()):
        if not Path(before.split()[-1]).exists():
            assert forked(before.split()) == 0, Path("log.txt").read_text()
    assert forked([*COMMANDS[command].split(), "--out", str(whole)]) == 0, Path("log.txt").read_text()
    imported()
    return held(whole)


def imported() -> None:
    """Import what the last command has, so that the next one forked has it."""
    for module in Path("modules.txt").read_text().split():
        with suppress(Exception):  # one that a package makes by itself
            __import__(module)


def tried(command: str) -> tuple[int, int]:
    """How many write points a command has, and how many of them were tried. Raises AssertionError."""
    words, (index, count) = COMMANDS[command].split(), part()
    whole, cut = Path("out", "whole"), Path("out", "cut")
    wanted = uninterrupted(command, whole)
    points = int(Path("points.txt").read_text())
    chosen = range(index or count, points + 1, count)
    for point in chosen:
        status = forked([*words, "--out", str(cut)], point)
        assert status == -signal.SIGKILL, (command, point, status, Path("log.txt").read_text())
        left = sorted(p.relative_to(cut).as_posix() for p in cut.rglob("*")) if cut.exists() else []
        about = f"{command} killed at {point}, which KILL_PART={point}/{10**9} does again; there were {left}"
        assert forked([*words, "--out", str(cut)]) == 0, (about, Path("log.txt").read_text())
        now = held(cut)
        odd = [name for name in {*now, *wanted} if now.get(name, 0) != wanted.get(name, 0)]
        assert not odd, (about, odd)
        assert sorted(p.name for p in Path("out").iterdir()) == ["cut", "whole"], (about, sorted(os.listdir("out")))
        shutil.rmtree(cut)
    return points, len(chosen)


def filled(command: str, sizes: Sequence[int]) -> list[str]:
    """What a command says where no file of it may be larger than each of some sizes; then it ends with room as the whole run
    does. Raises AssertionError."""
    words, said = COMMANDS[command].split(), []
    whole, cut = Path("out", "whole"), Path("out", "cut")
    wanted = uninterrupted(command, whole)
    for size in sizes:
        Path("log.txt").unlink(missing_ok=True)
        os.mkfifo("log.txt")
        with os.fdopen(os.open("log.txt", os.O_RDONLY | os.O_NONBLOCK), "rb") as pipe:  # a file would be full too
            code = forked([*words, "--out", str(cut)], largest=size)
            lines = pipe.read().decode().replace("\r", "\n").splitlines()
        Path("log.txt").unlink()
        lines = [
            line for line in lines if line.strip() and "Loading weights" not in line and "requires torchvision" not in line
        ]
        assert code == 2 and len(lines) == 1 and lines[0].startswith("tilting: "), (command, size, code, lines)
        said += lines
    assert forked([*words, "--out", str(cut)]) == 0, Path("log.txt").read_text()
    now = held(cut)
    odd = [name for name in {*now, *wanted} if now.get(name, 0) != wanted.get(name, 0)]
    assert not odd, (command, odd)
    assert sorted(p.name for p in Path("out").iterdir()) == ["cut", "whole"], (command, sorted(os.listdir("out")))
    return said


if __name__ == "__main__":
    warm()
    if sys.argv[1] == "--full":
        for name in sys.argv[2:]:
            print(name, filled(name, (0, 600, 1500)), flush=True)
        sys.exit()
    for name in sys.argv[1:]:
        begun = time.monotonic()
        points, kills = tried(name)
        print(f"{name}: {points} write points, {kills} of them tried in {time.monotonic() - begun:.0f} s", flush=True)
