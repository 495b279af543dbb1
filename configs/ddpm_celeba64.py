"""DDPM on CelebA at 64 x 64, unconditional, with the network that DDIM (arXiv:2010.02502) used for this data set.

    diffusion-jax train --config=configs/ddpm_celeba64.py --workdir=runs/celeba64

DDIM's paper reports FID 3.26 with 1000 ancestral steps. Hyperparameters are those of DDPM's 256 x 256 runs.
Built and its step traced in the tests; never trained here: the data set needs a download.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.data.update(source="tfds:celeb_a", shape=(64, 64, 3), flip=True)
    config.schedule = "linear"
    config.model.update(channels=128, multipliers=(1, 2, 2, 2, 4), blocks=2, attention=(4,), dropout=0.1)
    config.optimizer.update(learning_rate=2e-4, warmup=5000, clip=1.0)
    config.ema.decay = 0.9999
    config.train.update(steps=500_000, batch_size=128)
    config.log_every = 100
    config.checkpoint.update(every=5000, keep=3, keep_every=100_000)
    config.sample.update(every=10_000, num=64, sampler="ddim", steps=100)
    return config
