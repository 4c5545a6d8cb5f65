#!/bin/sh
# On a machine with a GPU, in about eight minutes: first whether it draws what the CPU does, then precisions, then the shapes of real
# models. Leaves real_size.json and docs/gpu.md.
#     sh benchmarks/gpu.sh [FOLDER]
set -eu
PYTHON=${PYTHON:-python}
OUT=${1:-gpu}
mkdir -p "$OUT"
$PYTHON - "$OUT" <<'EOF'
import sys
import torch
import tilting as tl

assert torch.cuda.is_available(), "there is no GPU here"
codex = tl.presets.codex(particles=4)
drawn = {}
for where, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16"), ("cuda", "fp16")):
    model = tl.load("pocket", where, precision)
    drawn[where, precision] = tl.generate(model, ["a fox", "an owl"], tl.rewards.clip(), codex, steps=10, progress=False)
first = drawn["cpu", "fp32"]
for key, found in drawn.items():
    far = (found.images - first.images).abs()
    print(*key, f"far {far.max().item():.4f} at most, {far.mean().item():.5f} on average;", found)
    assert key != ("cuda", "fp32") or far.mean() < 1 / 255, "the GPU does not draw what the CPU draws"
EOF
$PYTHON "$(dirname "$0")/real_size.py" --steps 4 --rounds 1 --out "$OUT/real_size.json"
$PYTHON "$(dirname "$0")/real_size.py" --page "$OUT/real_size.json"
