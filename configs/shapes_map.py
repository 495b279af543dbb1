"""Map-to-image: drawn shapes of 32 x 32 from semantic maps of circle, square and triangle.

diffusion-jax train --config=configs/shapes_map.py --workdir=runs/shapes_map
diffusion-jax sample --workdir=runs/shapes_map --out=samples --num=8 --map=map.png

Run and seen, 600 steps in 6 min 16 s on one CPU core: of 200 maps of the test split, read again from the samples, the
mean IoU is 0.69 (benchmarks/shapes_quality.py). Places are right; edges and colours are soft, so it wants more steps.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    config.spatial = ("map(classes=4, dropout=0.1)",)
    return config
