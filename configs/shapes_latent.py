"""Latent text-to-image: drawn shapes of 64 x 64 in the latent space of shapes_autoencoder.py.

diffusion-jax precompute --config=configs/shapes_latent.py --out=runs/lat
diffusion-jax train --config=configs/shapes_latent.py --workdir=runs/shapes_latent --config.data.precomputed=runs/lat
diffusion-jax sample --workdir=runs/shapes_latent --out=samples --num=8 --prompt='a large green triangle'

Run and seen: 20,000 latents in 3 min 40 s and 2,000 steps in 38 min, each on one CPU core beside other work. Colours
are right, corners are round, and a shape too many is common: of 100 captions of the test split 38 are right in shapes
and colours, 26 in the relation too (benchmarks/shapes_quality.py). It wants more steps and a sharper autoencoder.
That was with the text transformer as it started before it had its present initialization and convolution. The places
and the rate of shapes_text.py have not been tried here.
"""

from ml_collections import ConfigDict

from configs import shapes_text


def get_config() -> ConfigDict:
    config = shapes_text.get_config()
    config.schedule = "cosine | shift(scale=0.6)"
    config.weighting = "truncated_snr(floor=0.4, ceiling=20.0)"
    config.model.update(places=False, channels=48)
    config.optimizer.learning_rate = 1.5e-3
    config.data.update(source="shapes:64,20000", height=64, width=64)
    config.latent = "runs/shapes_autoencoder"
    config.model.patch = 1  # latents are 16 x 16
    config.train.steps = 2000
    config.sample.update(threshold="none", guidance=2.0)
    return config
