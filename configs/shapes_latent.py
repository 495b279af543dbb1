"""Latent text-to-image: drawn shapes of 64 x 64 in the latent space of shapes_autoencoder.py.

diffusion-jax train --config=configs/shapes_latent.py --workdir=runs/shapes_latent
diffusion-jax sample --workdir=runs/shapes_latent --out=samples --num=8 --prompt='a large green triangle'

Not run to the end yet; a few steps of the same kind are (tests/cli/conditions_command_test.py).
"""

from ml_collections import ConfigDict

from configs import shapes_text


def get_config() -> ConfigDict:
    config = shapes_text.get_config()
    config.data.update(source="shapes:64,20000", height=64, width=64)
    config.latent = "runs/shapes_autoencoder"
    config.model.patch = 1  # latents are 16 x 16
    config.train.steps = 2000
    config.sample.update(threshold="none")
    return config
