"""A command killed at each point where it writes, or at one in $KILL_STRIDE (20 unless told), and given again:
`python -m support.killing WHOLE CUT -- WORDS`.

A write point is a moment at which Python opens a file for writing, renames, removes, or makes or removes a folder below --out.
Children are forked after the imports. The points are printed; the exit code is 1 if a run ends otherwise than the whole one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def forked(words: list[str], stop: int | None = None) -> int:
    """The exit status of a command in a child, which kills itself at its write point of that number, from 1."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)
        if stop is not None:
            _kill_at(stop, os.path.abspath(words[words.index("--out") + 1]))
        from tilting.cli import main

        os._exit(main(words))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _kill_at(stop: int, root: str) -> None:
    seen = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        if event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITES):
            places = [arg for arg in args[:2] if isinstance(arg, str | bytes | os.PathLike)]
            if any(os.path.abspath(os.fsdecode(place)).startswith(root) for place in places):
                seen += 1
                if seen == stop:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def held(folder: Path) -> dict[str, object]:
    """What a folder holds, without times; grids and what a tracker writes by their names alone."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "tensorboard" not in p.parts):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text()))
        else:
            found[name] = path.read_bytes() if path.suffix in (".safetensors", ".png") or name == "metrics.jsonl" else None
    return found


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if "seconds" not in k and k not in ("argv", "out")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def tried(whole: Path, cut: Path, words: list[str], stride: int = 1) -> int:
    """The number of write points of a command, a kill tried at each (or at one in ``stride``, where the minute says which).
    Raises AssertionError."""
    assert forked([*words, "--out", str(whole)]) == 0, Path("log.txt").read_text()
    wanted, point = held(whole), int(time.time() / 60) % stride + 1 - stride
    while True:
        point += stride
        status = forked([*words, "--out", str(cut)], point)
        if status == 0:
            return point - 1  # of a stride: at most
        assert status == -signal.SIGKILL, (point, status, Path("log.txt").read_text())
        left = sorted(p.relative_to(cut).as_posix() for p in cut.rglob("*")) if cut.exists() else []
        assert forked([*words, "--out", str(cut)]) == 0, (point, left, Path("log.txt").read_text())
        now = held(cut)
        odd = [name for name in {*now, *wanted} if now.get(name, 0) != wanted.get(name, 0)]
        assert not odd, (point, left, odd)
        shutil.rmtree(cut)


if __name__ == "__main__":
    at = sys.argv.index("--")
    for module in ("tilting.training.run", "tilting.conditioning.fit_run", "tilting.conditioning.train_run", "diffusers"):
        __import__(module)
    print(tried(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[at + 1 :], int(os.environ.get("KILL_STRIDE", "20"))))
