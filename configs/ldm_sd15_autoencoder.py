"""The autoencoder of Stable Diffusion 1.5: f = 8, latents of 64 x 64 x 4 from 512 x 512 (arXiv:2112.10752).

diffusion-jax train --config=configs/ldm_sd15_autoencoder.py --workdir=runs/ldm_sd15_autoencoder

It has the 83,653,863 parameters of the published one. Planned with, as the shapes of what ldm_sd15.py works in; never
trained.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.task = "autoencoder"
    config.data.update(source="folder:images", shape=(512, 512, 3), flip=True)
    config.autoencoder.update(channels=128, latent_channels=4, multipliers=(1, 2, 4, 4), blocks=2, dtype="bfloat16")
    config.optimizer.update(learning_rate=4.5e-6)
    config.train.update(steps=500_000, batch_size=32)
    config.log_every = 100
    config.checkpoint.every = 5000
    config.sample.update(every=5000, num=8)
    return config
