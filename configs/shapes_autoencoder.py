"""The autoencoder of latent diffusion, f = 4: drawn shapes of 64 x 64 to latents of 16 x 16 x 4.

diffusion-jax train --config=configs/shapes_autoencoder.py --workdir=runs/shapes_autoencoder

Run and seen, 1,000 steps in 16 min on one CPU core, with glibc's huge pages (docs/benchmarks.md): of 200 pictures of
the test split PSNR 31.2 dB and SSIM 0.92 (benchmarks/shapes_quality.py). Colours and places are right, corners are
soft: small triangles look round.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.task = "autoencoder"
    config.data.update(source="shapes:64,20000", shape=(64, 64, 3), cache=True)
    config.autoencoder.update(channels=24, multipliers=(1, 2, 4), blocks=1, groups=8, latent_channels=4)
    config.optimizer.update(learning_rate=1e-3, warmup=100, decay="cosine")
    config.ema.decay = 0.99
    config.train.update(steps=1000, batch_size=16)
    config.log_every = 50
    config.checkpoint.every = 250
    config.sample.update(every=250, num=12)
    return config
