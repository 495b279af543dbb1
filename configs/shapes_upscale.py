"""Super-resolution: drawn shapes from 8 x 8 to 32 x 32 pixels, told of the small image with noise of a known level.

diffusion-jax train --config=configs/shapes_upscale.py --workdir=runs/shapes_upscale
diffusion-jax sample --workdir=runs/shapes_upscale --out=large --num=8 --low_res=small.png

--low_res takes a folder of samples too: the second stage of a cascade.

Run and seen, 600 steps in 9 min 29 s on one CPU core: of 200 images of the test split the enlarged have a PSNR of
30.4 dB, bicubic enlargement has 27.6 (benchmarks/shapes_quality.py). Edges ring a little.
That was with level_scale = 1, which told the network little of the noise's level.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    config.spatial = ("low_resolution(factor=4, noise=0.2)",)
    return config
