"""Map-to-image: drawn shapes of 32 x 32 from semantic maps of circle, square and triangle.

diffusion-jax train --config=configs/shapes_map.py --workdir=runs/shapes_map
diffusion-jax sample --workdir=runs/shapes_map --out=samples --num=8 --map=map.png

Run and seen, 800 steps in 16 min 49 s on one CPU core beside other work: of 200 maps of the test split, read again from
the samples, the mean IoU is 0.93 (benchmarks/shapes_quality.py). Edges are crisp; a shape now and then has two colours.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    config.spatial = ("map(classes=4, dropout=0.1)",)
    config.weighting = "min_snr(gamma=20.0)"
    config.model.scale_shift = True
    config.optimizer.update(name="muon", learning_rate=1.5e-3)
    config.train.steps = 800
    return config
