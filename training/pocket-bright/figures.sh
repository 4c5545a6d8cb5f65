#!/bin/sh
# The figures of pocket-bright's card: sh training/pocket-bright/figures.sh [CONTROL [DIR]]. "reward" is the brightness that pictures
# have by the function that labelled; beside it stand judge and path KL. The first lines are of pocket by itself.
set -eu
here=$(dirname "$0") control=${1:-pocket-bright} out=${2:-build/pocket-bright} tilting=${TILTING:-tilting} python=${PYTHON:-python}
set -- "a fox" "a cat" "a castle" "a sunflower" "a fish" "a house" "a banana" "an owl" --steps 12 --images 2 --seed 7 \
    --reward "$here/bright.py:bright"
$tilting generate "$@" -o "$out/figures/base"
for value in 40 55 70 85; do
    $tilting condition sample "$@" --control "$control" --label bright=$value -o "$out/figures/$value"
done

# How far pictures are from what was asked for on average, pocket's own and the control's, and the foxes that were asked for 40.
$python - "$out/figures" << 'END'
import json, sys
from pathlib import Path

def read(name):
    rows = [json.loads(line) for line in (Path(sys.argv[1]) / name / "images.jsonl").read_text().splitlines()]
    return [(row["prompt"], *row["rewards"].values()) for row in rows]

asked, own = ("40", "55", "70", "85"), read("base")
for title, of in (("pocket", lambda name: own), ("control", read)):
    far = [abs(value - float(name)) for name in asked for _, value in of(name)]
    print(f"{title}: {sum(far) / len(far):.1f} from what was asked for on average")
print("foxes asked for 40:", *(f"{value:.0f}" for prompt, value in read("40") if prompt == "a fox"))
END
