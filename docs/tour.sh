#!/usr/bin/env bash
# Draws the figures of docs/tour.md, with 128 colours each, from the workdirs whose training docs/tour.md tells.
#
#   docs/tour.sh [NAME ...]    theory digits shapes_latent shapes_text; all of them if none is named
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

draw() { # NAME FLAGS: the figures of the theory, or of the workdir runs/NAME
  python -m diffusion_jax figures --out="$work/$1" --size=48 "${@:2}"
}

[ $# -gt 0 ] || set -- theory digits shapes_latent shapes_text
for name in "$@"; do
  case $name in
  theory) draw theory ;;
  digits) draw digits --workdir=runs/digits --num=4 --label=2 --label=7 --seed=1 ;;
  shapes_latent) draw shapes_latent --workdir=runs/shapes_latent --num=4 --seed=4 --prompt='a large green triangle' ;;
  shapes_text)
    draw shapes_text --workdir=runs/shapes_text --num=3 --prompt='a small red circle left of a blue square' \
      --prompt='a large purple square above a yellow circle' --prompt='a large green triangle'
    ;;
  *) echo "no $name here: theory digits shapes_latent shapes_text" >&2 && exit 2 ;;
  esac
done
python - "$work" "$@" <<'PYTHON'
import sys
from pathlib import Path

from PIL import Image

FIGURES = {
    "theory": ("forward", "schedules", "kl", "time_embedding", "unet"),
    "digits": ("batch", "loss_by_time", "trajectory"),
    "shapes_latent": ("latents", "latent_diffusion"),
    "shapes_text": ("attention",),
}
work, *folders = sys.argv[1:]
for folder in folders:
    for name in FIGURES[folder]:
        picture = Image.open(Path(work, folder, f"{name}.png")).convert("RGB")
        # The plain median cut has no colour for what is small: a sample beside its maps, the edges of a difference.
        method = Image.Quantize.MAXCOVERAGE if folder == "shapes_text" else Image.Quantize.MEDIANCUT
        picture = picture.quantize(128, method, kmeans=8 if folder == "shapes_latent" else 0, dither=0)
        picture.save(f"docs/pictures/tour_{name}.png", optimize=True)
PYTHON
