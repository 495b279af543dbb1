"""What the configs of drawn shapes have in common: 32 x 32 pixels, x0 with min-SNR, a U-Net on patches of 2.

As it is, a model that is told nothing; not run by itself.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.data.update(source="shapes:32,20000", shape=(32, 32, 3), cache=True)
    config.schedule = "cosine"
    config.prediction = "x0"
    config.weighting = "min_snr(gamma=5.0)"
    config.model.update(patch=2, channels=48, multipliers=(1, 2), blocks=1, attention=(2,), groups=8, heads=4)
    config.optimizer.update(learning_rate=1e-3, warmup=100, decay="cosine")
    config.ema.decay = 0.995
    config.train.update(steps=600, batch_size=32)
    config.log_every = 50
    config.checkpoint.every = 200
    config.sample.update(every=200, num=24, sampler="dpmpp_2m", steps=20)
    return config
