#!/bin/sh
# The figures of pocket-bright's card: sh training/pocket-bright/figures.sh [CONTROL [DIR]]. "reward" is the brightness that pictures
# have by the function that labelled; beside it stand judge and path KL. The first lines are of pocket by itself.
set -eu
here=$(dirname "$0") control=${1:-pocket-bright} out=${2:-build/pocket-bright} tilting=${TILTING:-tilting}
set -- "a fox" "a cat" "a castle" "a sunflower" "a fish" "a house" "a banana" "an owl" --steps 12 --images 2 --seed 7 \
    --reward "$here/bright.py:bright"
$tilting generate "$@" -o "$out/figures/base"
for value in 40 55 70 85; do
    $tilting condition sample "$@" --control "$control" --label bright=$value -o "$out/figures/$value"
done
