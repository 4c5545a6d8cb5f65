"""What `tilting doctor` says of the memory of large models, against runs of them cut down to two depths, and extrapolated.

    python benchmarks/depths.py       SDXL, FLUX and Wan-1.3B in bf16 on a CPU, about ten minutes; the promise is within 25 %

A model of real width has one and two of its repeated blocks, and text encoders of one layer; memory grows by as much with every
further block. The process's peak over what it held before, in a run of CoDeX with a gradient at every step, is measured at both
depths and extended to the model's own; the estimate is that of the whole model's configuration.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import real_size
from real_size import estimate, measure, need_of, request, sizes
from shapes import Aesthetic, write

from tilting.models.placement import Switches

STEPS, PARTICLES = 2, 1
SIDE = 512
"""Pixels, of a picture."""
real_size.TOLD = {"flux": {"height": SIDE, "width": SIDE}, "wan": {"height": 256, "width": 256, "frames": 5}}
WHOLE = {"sdxl": 10, "flux": 19, "wan": 30}


def depth_of(name: str, depth: int) -> dict[str, Any]:
    """The configuration of a network that has so many of the blocks that are counted in `WHOLE`."""
    if name == "sdxl":
        return {"transformer_layers_per_block": [1, 2, depth]}
    return {"num_layers": depth, **({"num_single_layers": 2 * depth} if name == "flux" else {})}


def cut(name: str, depth: int, folder: Path) -> Path:
    """The folder of a shape at a depth, its text encoders of one layer."""
    write(name, folder, SIDE)
    for part in folder.iterdir():
        file = part / "config.json"
        if part.name in ("unet", "transformer"):
            file.write_text(json.dumps(json.loads(file.read_text()) | depth_of(name, depth)))
        elif part.name.startswith("text_encoder"):
            said = json.loads(file.read_text())
            file.write_text(json.dumps(said | {"num_layers" if "num_layers" in said else "num_hidden_layers": 1}))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default=",".join(WHOLE))
    parser.add_argument("--depth", type=int, help="measure one, and print it")
    parser.add_argument("--out", type=Path, help="a json of real_size.py, which it is written into")
    options = parser.parse_args()
    real_size.SWITCHES.clear()
    for name in options.shapes.split(","):
        with tempfile.TemporaryDirectory() as place:
            if options.depth:
                folder = cut(name, options.depth, Path(place))
                print(json.dumps(measure(name, folder, folder, STEPS, PARTICLES, 1, True, True)))
                continue
            config = request(name, cut(name, WHOLE[name], Path(place)), STEPS, PARTICLES, True)
            need, _ = need_of(config)
            whole = estimate(sizes(config, Aesthetic()), need, PARTICLES, Switches.of(config)).total / 1e9
        found = {}
        for depth in (1, 2):  # each a process of its own, whose memory is its own
            words = [sys.executable, __file__, "--shapes", name, "--depth", str(depth)]
            said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            found[depth] = json.loads(said.strip().splitlines()[-1])
        one, two = (found[depth]["peak_gb"] for depth in (1, 2))
        extended = one + (two - one) * (WHOLE[name] - 1)
        of = [found[depth]["estimate_gb"] / found[depth]["peak_gb"] for depth in (1, 2)]
        row = {"peak_gb": [one, two], "estimate_over_peak": of, "extended_gb": extended, "estimate_gb": whole}
        row["ratio"] = whole / extended
        print(json.dumps({name: row}), flush=True)
        if options.out:
            told = json.loads(options.out.read_text())
            options.out.write_text(json.dumps(told | {"depths": told.get("depths", {}) | {name: row}}, indent=1))


if __name__ == "__main__":
    main()
