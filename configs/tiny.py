"""A network of seconds, for tests and for trying things out: class-conditional digits, 8 x 8.

Run and seen: every test of the commands. It learns little more than where ink is.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import base


def get_config() -> ConfigDict:
    config = base()
    config.data.update(shape=(8, 8, 1), cache=True)
    config.schedule = "cosine(steps=100)"
    config.model.update(channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, dropout=0.1, num_classes=10)
    config.optimizer.update(learning_rate=3e-3, warmup=5)
    config.train.update(steps=20, batch_size=16)
    config.log_every = 5
    config.checkpoint.every = 10
    config.sample.update(every=10, num=20, sampler="ddim", steps=5)
    return config
