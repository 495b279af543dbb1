"""Inpainting: drawn shapes of 32 x 32 with brush strokes, boxes and sides hidden.

diffusion-jax train --config=configs/shapes_inpaint.py --workdir=runs/shapes_inpaint
diffusion-jax sample --workdir=runs/shapes_inpaint --out=painted --num=8 --init_image=a.png --mask=mask.png
diffusion-jax sample --workdir=runs/shapes_inpaint --out=wider --num=8 --init_image=a.png --expand=16,0,16,0

Not run to the end yet; a few steps of the same kind are (tests/cli/conditions_command_test.py).
"""

from ml_collections import ConfigDict

from configs import shapes_text


def get_config() -> ConfigDict:
    config = shapes_text.get_config()
    config.text = ""
    config.spatial = ("inpaint()",)
    config.train.steps = 600
    config.checkpoint.every = 200
    config.sample.update(every=200, num=24, guidance=1.0)
    return config
