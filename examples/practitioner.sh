#!/bin/sh
# Better pictures, and a LoRA of what was better: sh examples/practitioner.sh [DIR]. Minutes on two cores; SMALL=1 is for CI.
set -eu
out=${1:-hour/practitioner} tilting=${TILTING:-tilting}
if [ -n "${SMALL:-}" ]; then steps=2 images=1 train=2; else steps=25 images=2 train=40; fi
mkdir -p "$out"

# What the model draws by itself. The same command again goes on where it stopped.
$tilting generate "a fox" "a sunflower" --steps $steps --images $images -o "$out/base"

# A reward of your own whose effect nobody can miss: red less blue. Open warm/compare.html.
cat > "$out/warm.py" <<'END'
def warm(images, prompts):
    return (images[:, 0] - images[:, 2]).mean((1, 2))


warm.differentiable = True
END
$tilting compare "a fox" "a sunflower" "a cat" "a castle" --reward "$out/warm.py:warm" --methods base,bon,codex \
    --steps $steps --images $images -o "$out/warm"

# A LoRA once, instead of steering every time; then it is a column beside the base model.
$tilting finetune "a fox" --objective draft-lv --reward "$out/warm.py:warm" --train-steps $train \
    --sample-every 10 --steps $steps -o "$out/lora"
$tilting compare "a fox" "a sunflower" "a cat" "a castle" --reward "$out/warm.py:warm" --methods "base,lora:$out/lora" \
    --steps $steps --images $images -o "$out/before-after"
