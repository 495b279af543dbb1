"""DDPM on the digits without classes: what a classifier guides.

diffusion-jax train --config=configs/digits_plain.py --workdir=runs/digits_plain

Not run to the end yet; a few steps of the same kind are (tests/cli/conditions_command_test.py).
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.model.num_classes = 0
    config.sample.update(num=64, guidance=1.0)
    return config
