"""Inpainting: drawn shapes of 32 x 32 with brush strokes, boxes and sides hidden.

diffusion-jax train --config=configs/shapes_inpaint.py --workdir=runs/shapes_inpaint
diffusion-jax sample --workdir=runs/shapes_inpaint --out=painted --num=8 --init_image=a.png --mask=mask.png
diffusion-jax sample --workdir=runs/shapes_inpaint --out=wider --num=8 --init_image=a.png --expand=16,0,16,0

Run and seen, 800 steps in 27 min on one CPU core beside other work: what is known stays to the pixel and the background
goes on; of 200 pictures of the test split 75% show nothing but clear shapes (benchmarks/shapes_quality.py). What is new
is soft, and outpainted shapes are blobs, so it wants more steps.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    config.spatial = ("inpaint()",)
    config.weighting = "edm(sigma_data=0.5)"
    config.model.scale_shift = True
    config.optimizer.update(name="muon", learning_rate=1.5e-3)
    config.train.steps = 800
    return config
