#!/usr/bin/env bash
# Draws the figures of docs/tour.md, with 128 colours each, from the workdir that `train --config=digits` makes.
#
#   docs/tour.sh [WORKDIR]    runs/digits if it is left out
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python -m diffusion_jax figures --out="$work/theory" --size=48
python -m diffusion_jax figures --out="$work/run" --workdir="${1:-runs/digits}" --num=4 --label=2 --label=7 --seed=1
python - "$work" <<'PYTHON'
import sys
from pathlib import Path

from PIL import Image

figures = {"theory": ("forward", "schedules", "kl", "time_embedding", "unet"), "run": ("batch", "loss_by_time", "trajectory")}
for folder, names in figures.items():
    for name in names:
        picture = Image.open(Path(sys.argv[1], folder, f"{name}.png")).convert("RGB").quantize(128, dither=0)
        picture.save(f"docs/pictures/tour_{name}.png", optimize=True)
PYTHON
