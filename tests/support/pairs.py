"""Commands in several processes, as a launcher starts them, beside the same in one: `python -m support.pairs WHAT`, in a folder
that `support.killing.prepare` has filled. Processes are forked after the imports, with the model read, and meet over loopback.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from support.killing import BEFORE, MODEL, child, forked, held, imported, part, warm

WORDS = f"generate a-fox an-owl a-cat a-dog a-hen --images 1 --batch-size 1 --reward r.py:bright {MODEL}"
"""Five images for two processes: uneven."""
SAME = {
    "generate": WORDS,
    "generate, one group": f"generate a-fox an-owl a-cat --images 1 --batch-size 16 --reward r.py:bright {MODEL}",
    "compare": f"compare a-fox an-owl --methods base,bon --particles 2 --images 1 --reward r.py:bright {MODEL}",
    "evaluate": "evaluate drawn again --quiet",
    "condition sample": f"condition sample a-fox an-owl --control control --label bright=yes --strength 0,1 --images 1 {MODEL}",
    **{
        f"particles of {name}": f"generate a-fox an-owl --method {name} {more} --reward r.py:bright --split particles {MODEL}"
        for name, more in {
            "code": "--particles 4 --set code.block=1",
            "codex": "--particles 3 --set codex.block=1 --cfg 3",
            "smc": "--particles 4",
        }.items()
    },
}
GRACE = 20
"""Seconds that a launcher gives those that it ends."""


def several(words: list[str], count: int = 2, stop: int = 0, rank: int = 1, env: Mapping[str, str] | None = None) -> list[int]:
    """The exit statuses of a command in so many processes, of which that of ``rank`` kills itself at its write point of number
    ``stop``; when one fails the others are ended, as launchers do it. ``env`` is what a launcher sets besides."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    codes: dict[int, int] = {}
    pids = []
    for index in range(count):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(count), **(env or {})}
            child(words, stop if index == rank else 0, told=index == rank)
        pids.append(pid)
    end = None
    while len(codes) < count:
        for pid in [pid for pid in pids if pid not in codes]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        left = [pid for pid in pids if pid not in codes]
        if left and end is None and any(codes.values()):
            end = time.monotonic() + GRACE
            for pid in left:
                os.kill(pid, signal.SIGTERM)
        if left and end is not None and time.monotonic() > end:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{left} did not end: {Path('log.txt').read_text()}")
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def before(command: str) -> None:
    """Make what a command reads."""
    for words in BEFORE.get(command, ()):
        if not Path(words.split()[-1]).exists():
            assert forked(words.split()) == 0, Path("log.txt").read_text()


def plain(found: dict[str, object]) -> dict[str, object]:
    """What a folder holds, but for what each line says of the costs until then."""
    lines = {name: value for name, value in found.items() if name.endswith(".jsonl") and isinstance(value, list)}
    return found | {name: [{k: v for k, v in line.items() if k != "spent"} for line in value] for name, value in lines.items()}


def alike(one: object, two: object) -> bool:
    """Whether values are equal; numbers, within what sums in another order of batches change."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(alike(one[k], two[k]) for k in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(alike, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) <= 1e-5 * max(1.0, abs(one))
    return pixels(one, two) if isinstance(one, bytes) and isinstance(two, bytes) else one == two


def pixels(one: bytes, two: bytes) -> bool:
    """Whether two pictures are the same within 1 of 255, or other files equal."""
    if one == two or not one.startswith(b"\x89PNG"):
        return one == two
    import io

    import numpy as np
    from PIL import Image

    a, b = (np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (one, two))
    return a.shape == b.shape and abs(a - b).max() <= 1


def same(name: str) -> None:
    """A command in two processes leaves what it does in one. Raises AssertionError."""
    before(name)
    shutil.rmtree("out", ignore_errors=True)
    words = SAME[name].split()
    assert forked([*words, "--out", "out/one"]) == 0, Path("log.txt").read_text()
    imported()
    assert several([*words, "--out", "out/two"]) == [0, 0], Path("log.txt").read_text()
    one, two = (plain(held(Path("out", folder))) for folder in ("one", "two"))
    odd = [name for name in {*one, *two} if not alike(one.get(name, 0), two.get(name, 0))]
    assert not odd, (name, [(one.get(key), two.get(key)) for key in odd])
    assert sorted(os.listdir("out")) == ["one", "two"], os.listdir("out")
    pictures = [key for key in one if key.endswith(".png") and "images/" in key]
    print(f"{name}: {len(one)} files, {sum(one[key] == two[key] for key in pictures)} of {len(pictures)} pictures to the bit")


def killed() -> None:
    """A process that is killed at a write point ends the others, and the folder goes on, in one process or in several. Of all
    points those that $KILL_PART has, of both processes. Raises AssertionError."""
    words, (index, count) = WORDS.split(), part()
    shutil.rmtree("out", ignore_errors=True)
    assert several([*words, "--out", "out/whole"]) == [0, 0], Path("log.txt").read_text()
    wanted, cut = plain(held(Path("out/whole"))), Path("out/cut")
    for rank in (0, 1):
        assert several([*words, "--out", "out/again"], rank=rank) == [0, 0], Path("log.txt").read_text()
        shutil.rmtree("out/again")
        points = int(Path("points.txt").read_text())
        chosen = range(index or count, points + 1, count)
        for point in chosen:
            codes = several([*words, "--out", str(cut)], stop=point, rank=rank)
            about = f"process {rank} killed at {point} of {points}, which KILL_PART={point}/{10**9} does again", codes
            assert codes[rank] == -signal.SIGKILL, (about, Path("log.txt").read_text())
            again = point % 3 + 1
            done = several([*words, "--out", str(cut)], again) if again > 1 else [forked([*words, "--out", str(cut)])]
            assert done == [0] * again, (about, again, Path("log.txt").read_text())
            now = plain(held(cut))
            odd = [name for name in {*now, *wanted} if now.get(name, 0) != wanted.get(name, 0)]
            assert not odd, (about, again, odd)
            assert sorted(os.listdir("out")) == ["cut", "whole"], (about, os.listdir("out"))
            shutil.rmtree(cut)
        print(f"process {rank}: {points} write points, {len(chosen)} of them tried", flush=True)


def refused() -> None:
    """A refusal of one process is that of all, and a reward that fails in one ends the others. Raises AssertionError."""
    shutil.rmtree("out", ignore_errors=True)
    Path("log.txt").unlink(missing_ok=True)
    Path("odd.py").write_text(
        "import os\n\ndef odd(images, prompts):\n"
        "    return images.mean((1, 2, 3)) * (float('nan') if os.environ['RANK'] == '1' else 1)\n"
    )
    codes = several([*WORDS.replace("r.py:bright", "odd.py:odd").split(), "--out", "out/odd"])
    assert codes[1] == 2 and codes[0] in (0, 2, 143), codes
    said = Path("log.txt").read_text()
    assert "reward 'odd.py:odd' gave nan for image 0 of 1 (image 0 of 'an-owl', seed 0)" in said and "Traceback" not in said, (
        said
    )
    assert not list(Path("out/odd").rglob(".*.tilting")), list(Path("out/odd").rglob("*"))
    print("refused")


TRAIN = f"""finetune a-fox an-owl --judge r.py:dark --sample-images 1 --sample-every 1 --train-steps 2 --batch-size 2 --rank 2
--checkpoint-every 1 {MODEL}"""
SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
CONTROL = f"""condition train a-fox an-owl --classifier fit --train-steps 2 --batch-size 2 --rank 2 --sample-every 1
--checkpoint-every 1 {MODEL}"""
SHARDED: dict[str, tuple[str, float]] = {
    "draft-lv": (f"{TRAIN} --reward r.py:bright --objective draft-lv", 1e-5),
    "ddpo": (f"{TRAIN} --reward r.py:bright --objective ddpo", 1e-5),
    "a control": (CONTROL, 1e-4),
}
"""Trainings, and how far their LoRAs may be from that of one process; a control learns faster."""


def shards() -> None:
    """A network in shards trains as a whole one does, and what is saved is a plain LoRA; a reward that fails in one process
    skips the step in both. Raises AssertionError."""
    from safetensors.torch import load_file

    before("condition train")
    for name, (words, most) in SHARDED.items():
        shutil.rmtree("out", ignore_errors=True)
        words = words.split()
        assert forked([*words, "--out", "out/one"]) == 0, Path("log.txt").read_text()
        assert several([*words, "--out", "out/two"], env=SHARDS) == [0, 0], Path("log.txt").read_text()
        one, two = ({k: v for k, v in held(Path("out", n)).items() if not isinstance(v, bytes)} for n in ("one", "two"))
        assert one["manifest.json"]["summary"].pop("processes") == 1 and two["manifest.json"]["summary"].pop("processes") == 2
        one.pop("control.json", 0), two.pop("control.json", 0)  # which has digests of the files
        odd = [file for file in {*one, *two} if not alike(one.get(file, 0), two.get(file, 0))]
        assert not odd, (name, [(one.get(file), two.get(file)) for file in odd])
        file = "lora/pytorch_lora_weights.safetensors"
        a, b = (load_file(Path("out", n, file)) for n in ("one", "two"))
        far = max((a[key] - b[key]).abs().max().item() for key in a)
        assert a.keys() == b.keys() and far < most, (name, far)
        assert forked(f"generate a-fox --lora out/two/lora {MODEL} --out out/drawn".split()) == 0, Path("log.txt").read_text()
        print(f"shards of {name}: the LoRA is that of one process within {far:.0e}")
    Path("odd.py").write_text(
        "import os\nCALLS = []\n\ndef odd(images, prompts):\n    CALLS.append(1)\n"
        "    bad = os.environ['RANK'] == '1' and len(CALLS) == 1\n"
        "    return images.mean((1, 2, 3)) * (float('nan') if bad else 1)\nodd.differentiable = True\n"
    )
    words = [*TRAIN.replace("--sample-every 1", "--sample-every 0").split(), "--reward", "odd.py:odd", "--out", "out/odd"]
    assert several(words, env=SHARDS) == [0, 0], Path("log.txt").read_text()
    assert held(Path("out/odd"))["manifest.json"]["summary"]["skipped"] == 1
    print("shards of a reward that fails in one process")


if __name__ == "__main__":
    warm()
    with suppress(ImportError):
        import accelerate  # noqa: F401
    for what in sys.argv[1:]:
        begun = time.process_time(), time.monotonic()
        {"killed": killed, "refused": refused, "shards": shards}.get(what, lambda what=what: same(what))()
        print(f"  {time.monotonic() - begun[1]:.1f} s", flush=True)
