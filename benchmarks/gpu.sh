#!/bin/sh
# On a machine with a GPU, in about eight minutes: first whether it draws what the CPU does and everything runs there (gpu.py), then
# the shapes of real models, one process each. A step that fails, or takes too long, is written into FOLDER/failed.txt, and the rest
# goes on. Leaves FOLDER/checks.json, FOLDER/real_size.json and docs/gpu.md.
#     sh benchmarks/gpu.sh [FOLDER]
set -u
PYTHON=${PYTHON:-python}
OUT=${1:-gpu}
HERE=$(dirname "$0")
mkdir -p "$OUT"
: > "$OUT/failed.txt"

step() { # seconds, then the command
    limit=$1
    shift
    timeout -k 5 "$limit" "$@" 2> "$OUT/stderr.txt"
    code=$?
    [ $code -eq 0 ] || { echo "exit code $code (124 is too long): $*"; tail -n 5 "$OUT/stderr.txt"; } | tee -a "$OUT/failed.txt"
}

$PYTHON -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "there is no GPU here"; exit 2; }
step 210 $PYTHON "$HERE/gpu.py" --out "$OUT"
step 80 $PYTHON "$HERE/real_size.py" --shapes sd15 --steps 2 --rounds 1 --out "$OUT/real_size.json"
for shape in sdxl sd35 flux wan; do
    step 45 $PYTHON "$HERE/real_size.py" --shapes $shape --steps 2 --brief --out "$OUT/real_size.json"
done
[ ! -f "$OUT/real_size.json" ] || step 20 $PYTHON "$HERE/real_size.py" --page "$OUT/real_size.json"
[ ! -s "$OUT/failed.txt" ]
