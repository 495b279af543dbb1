"""Super-resolution: drawn shapes from 8 x 8 to 32 x 32 pixels, told of the small image with noise of a known level.

diffusion-jax train --config=configs/shapes_upscale.py --workdir=runs/shapes_upscale
diffusion-jax sample --workdir=runs/shapes_upscale --out=large --num=8 --low_res=small.png

--low_res takes a folder of samples too: the second stage of a cascade.

Not run to the end yet; a few steps of the same kind are (tests/cli/conditions_command_test.py).
"""

from ml_collections import ConfigDict

from configs import shapes_text


def get_config() -> ConfigDict:
    config = shapes_text.get_config()
    config.text = ""
    config.spatial = ("low_resolution(factor=4, noise=0.2)",)
    config.train.steps = 600
    config.checkpoint.every = 200
    config.sample.update(every=200, num=24, guidance=1.0)
    return config
