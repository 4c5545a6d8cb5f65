"""Throughput of two processes of a launcher that share a run, against two runs that know nothing of each other, at once.

    python benchmarks/processes.py        prints images per second of both, and their ratio; the promise is >= 0.95

Pairs take turns in one session, each first in every other round: what else the machine does meets both. Start-up is left out:
what counts is the time in which both processes draw.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SIZE = 4
"""Pictures of a group."""
THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(out: Path, images: int, steps: int, seed: int) -> list[str]:
    words = f"generate a-fox --images {images} --steps {steps} --batch-size {SIZE} --seed {seed} --quiet --out {out}"
    return [sys.executable, "-m", "tilting", *words.split()]


def groups(folder: Path, first: int = 0, every: int = 1) -> list[float]:
    """When every group of pictures was written, of those that one process drew."""
    count = len(list((folder / "images").iterdir()))
    return [(folder / "images" / f"{SIZE * k + SIZE - 1:05d}.png").stat().st_mtime for k in range(first, count // SIZE, every)]


def rate(times: list[list[float]]) -> float:
    """Images a second, in the time in which both were drawing."""
    low, high = max(one[0] for one in times), min(one[-1] for one in times)
    return SIZE * sum(low < time <= high for one in times for time in one) / (high - low)


def apart(folder: Path, images: int, steps: int) -> float:
    outs = [folder / "a", folder / "b"]
    begun = [subprocess.Popen(command(out, images, steps, i), env=THREAD) for i, out in enumerate(outs)]
    assert [one.wait() for one in begun] == [0, 0]
    return rate([groups(out) for out in outs])


def shared(folder: Path, images: int, steps: int) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = folder / "both"
    env = {**THREAD, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    begun = [
        subprocess.Popen(command(out, 2 * images, steps, 0), env={**env, "RANK": str(i), "LOCAL_RANK": str(i)}) for i in (0, 1)
    ]
    assert [one.wait() for one in begun] == [0, 0]
    return rate([groups(out, index, 2) for index in (0, 1)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=40, help="of each process")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"apart": [], "shared": []}
    for k in range(options.rounds):
        for name in ("apart", "shared") if k % 2 else ("shared", "apart"):
            with tempfile.TemporaryDirectory() as folder:
                found = {"apart": apart, "shared": shared}[name](Path(folder), options.images, options.steps)
            rates[name].append(found)
            print(json.dumps({name: round(found, 3)}), flush=True)
    ratios = [a / b for a, b in zip(rates["shared"], rates["apart"], strict=True)]
    print(json.dumps({"images_per_second": {k: round(statistics.median(v), 3) for k, v in rates.items()}}))
    print(json.dumps({"ratio": round(statistics.median(ratios), 3), "of": [round(one, 3) for one in ratios]}))


if __name__ == "__main__":
    main()
