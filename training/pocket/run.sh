#!/usr/bin/env bash
# The whole recipe, one part after the other; every part resumes from work/ by itself.
set -eu
cd "$(dirname "$0")"
export PYTHONPATH=../../src
mkdir -p work
python=${PYTHON:-../../.venv/bin/python}
for part in ${PARTS:-vae unet clip judge}; do
  $python train_$part.py ${STEPS:-} >> work/$part.log 2>&1
done
$python evaluate.py
$python card.py
