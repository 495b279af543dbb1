"""The classifier of noisy digits that guides a model which knows no classes (arXiv:2105.05233, section 4).

diffusion-jax train --config=configs/digits_classifier.py --workdir=runs/digits_classifier
diffusion-jax sample --workdir=runs/digits_plain --out=samples --classifier=runs/digits_classifier --label=3

Run and seen, 500 steps in a minute and a half on one CPU core; what its guidance does is in digits_plain.py.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.task = "classifier"
    config.model.head_channels = 16
    config.train.steps = 500
    config.sample.every = 0
    return config
