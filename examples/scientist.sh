#!/bin/sh
# A property of pictures as a new control: sh examples/scientist.sh [DIR]. Minutes on two cores; SMALL=1 is for CI.
set -eu
out=${1:-hour/scientist} tilting=${TILTING:-tilting}
if [ -n "${SMALL:-}" ]; then steps=2 count=12 epochs=2 train=2 images=1; else steps=12 count=40 epochs=100 train=100 images=4; fi
mkdir -p "$out"

# Pictures, and what you measure on them: here how warm each is. Your own: a table with a column per label, or class folders.
$tilting generate "a fox" "a cat" "a castle" "a sunflower" "a fish" --steps $steps --images $count --seed 1 -o "$out/data"
cat > "$out/label.py" <<'END'
def warm(images, prompts):
    return (images[:, 0] - images[:, 2]).mean((1, 2))
END

# p(y | x), calibrated: is it right as often as it says? See fit/reliability.png and fit/confusion.png.
$tilting condition fit --data "$out/data" --label-by "$out/label.py:warm" --label warm=cold,middle,warm --bins 3 \
    --epochs $epochs -o "$out/fit"

# Guidance first: no training, a little slower to draw.
$tilting condition sample "a fox" "a cat" --classifier "$out/fit" --label warm=cold --strength 1,4 --steps $steps \
    --images $images -o "$out/guided"

# A control when you will draw a thousand: each picture may cost 30 nats of KL to the model. See control/samples and curve.png.
$tilting condition train "a fox" "a cat" "a castle" "a sunflower" --classifier "$out/fit" --kl-target 30 --train-steps $train \
    --steps $steps -o "$out/control"
$tilting condition sample "a fox" "a fish" --control "$out/control" --label warm=cold --strength 0,1,2 --steps $steps \
    --images $images -o "$out/drawn"
