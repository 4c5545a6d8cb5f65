#!/bin/sh
# How pocket-bright was made: sh training/pocket-bright/run.sh [DIR]. A quarter of an hour on a core; every step resumes. What it says
# of itself (control.json, lora, embedding, classifiers) is in the package, and the rest is of the run.
set -eu
here=$(dirname "$0") out=${1:-build/pocket-bright} tilting=${TILTING:-tilting} python=${PYTHON:-python}
mkdir -p "$out"

# A picture of each thing that pocket draws.
$python -c 'from tilting.config.condition_train import usual_prompts as all
print(*all("pocket"), sep="\n")' > "$out/prompts.txt"
$tilting generate --prompts "$out/prompts.txt" --steps 12 --seed 1 -o "$out/data"

# p(brightness | picture), by a CNN that is small on disk: brightness is seen at 16 x 16.
$tilting condition fit --data "$out/data" --label-by "$here/bright.py:bright" --kind cnn --widths 16,32 --size 16 \
    --epochs 200 --patience 40 --batch-size 32 --lr 3e-3 --seed 0 -o "$out/fit"

# Each picture may cost so many nats of KL to pocket.
$tilting condition train --classifier "$out/fit" --kl-target 60 --gamma 1 --train-steps 80 --steps 10 --batch-size 4 \
    --schedule cosine --sample-every 40 --seed 0 -o "$out/control"

sh "$here/figures.sh" "$out/control" "$out"
