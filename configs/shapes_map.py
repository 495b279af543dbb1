"""Map-to-image: drawn shapes of 32 x 32 from semantic maps of circle, square and triangle.

diffusion-jax train --config=configs/shapes_map.py --workdir=runs/shapes_map
diffusion-jax sample --workdir=runs/shapes_map --out=samples --num=8 --map=map.png

Not run to the end yet; a few steps of the same kind are (tests/cli/conditions_command_test.py).
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    config.spatial = ("map(classes=4, dropout=0.1)",)
    return config
