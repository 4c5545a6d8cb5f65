#!/bin/sh
# A method against its variants, as a paper's table and curve: sh examples/researcher.sh [DIR]. SMALL=1 is for CI.
set -eu
out=${1:-hour/researcher} tilting=${TILTING:-tilting}
if [ -n "${SMALL:-}" ]; then steps=2 images=1 seeds=0; else steps=25 images=1 seeds=0,1; fi

# Columns of one noise: rivals, the same method with another setting, with other N. compare.html, table.tex, figures/.
$tilting compare "a fox" "a cat" "a castle" "a sunflower" --reward clip --steps $steps --images $images --seed $seeds \
    --methods base,bon,codex,codex:strength=0.4,codex:N=2 -o "$out/columns"

# One setting over its range, with the curve of reward and of the judge.
$tilting compare "a fox" "a cat" "a castle" "a sunflower" --reward clip --steps $steps --images $images --seed $seeds \
    --sweep codex.strength=0.1,0.4,1.6 -o "$out/sweep"

# Better, or gamed? Judges that the reward does not read, diversity, distances to the base model.
$tilting evaluate "$out/columns/runs/base" "$out/columns/runs/codex" -o "$out/judged"
