#!/usr/bin/env bash
# Draws the pictures of docs/gallery.md with the workdirs in runs/ that the headers of the configs say how to train.
#
#   docs/gallery.sh [NAME ...]    text latent upscale inpaint outpaint map edit guided; all of them if none is named
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Pictures of the test split, which no model has seen, with their maps and at a quarter of their size.
python - "$work" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.data import shapes

for i in (3, 13, 17, 26):
    for size in (32, 64):
        image, classes = shapes.draw(shapes.picture("test", i), size)
        Image.fromarray(image).save(Path(sys.argv[1], f"image{i}_{size}.png"))
        Image.fromarray(classes).save(Path(sys.argv[1], f"map{i}_{size}.png"))
    Image.open(Path(sys.argv[1], f"image{i}_32.png")).resize((8, 8), Image.BOX).save(Path(sys.argv[1], f"small{i}.png"))
mask = np.zeros((32, 32), np.uint8)
mask[:, 16:] = 255
Image.fromarray(mask).save(Path(sys.argv[1], "right.png"))
PYTHON

draw() { # NAME WORKDIR FLAGS: the grid, and what the model was given if anything
  local name=$1 workdir=$2
  python -m diffusion_jax sample --workdir="runs/$workdir" --out="$work/$name" "${@:3}"
  local drawn=grid
  [ ! -f "$work/$name/edit.png" ] || drawn=edit # the image beside what became of it
  cp "$work/$name/$drawn.png" "docs/pictures/$name.png"
  [ ! -f "$work/$name/given.png" ] || cp "$work/$name/given.png" "docs/pictures/${name}_given.png"
}

text() { draw text shapes_text --num=32 --prompts=docs/pictures/prompts.txt --guidance=2; }
latent() { draw latent shapes_latent --num=32 --prompts=docs/pictures/prompts.txt --guidance=4; }
upscale() { draw upscale shapes_upscale --num=8 --low_res="$work/small13.png"; }
inpaint() { draw inpaint shapes_inpaint --num=8 --init_image="$work/image3_32.png" --mask="$work/right.png"; }
outpaint() { draw outpaint shapes_inpaint --num=4 --init_image="$work/image13_32.png" --expand=16,0,16,0; }
map() { draw map shapes_map --num=8 --map="$work/map13_32.png"; }
edit() {
  draw edit shapes_text --num=8 --init_image="$work/image17_32.png" --strength=0.7 --prompt='a large green triangle' --guidance=3
}
guided() { draw guided digits_plain --num=40 --classifier=runs/digits_classifier --classifier_scale=4 --label={0,1,2,3,4,5,6,7,8,9}; }

mkdir -p docs/pictures
for name in "${@:-text latent upscale inpaint outpaint map edit guided}"; do
  for each in $name; do "$each"; done
done
