"""A workdir whose parameters are random: nothing is trained, and everything can be drawn from it."""

import contextlib

import jax
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.config import base
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train.checkpoint import Checkpoints


def write(root, task):
    """A model of the digits, or a classifier of them, at step 7."""
    config = base()
    config.data.shape = (8, 8, 1)
    config.task, config.schedule, config.prediction = task, "cosine(steps=50)", "v"
    config.model.update(channels=4, multipliers=(1,), blocks=1, attention=(), groups=2, num_classes=10)
    config.model.head_channels = 4
    config.sample.update(sampler="ddim", steps=3, threshold="static")
    workdir = Workdir(root)
    workdir.write_config(config)
    diffusion = task == "diffusion"
    abstract = (
        experiment.abstract_state(config, experiment.trainee(config, experiment.model(config)))
        if diffusion
        else experiment.abstract_state(config, experiment.classifier.trainee(config))
    )
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda a: np.asarray(0.3 * rng.standard_normal(a.shape), a.dtype), abstract)
    state = jax.device_put(state._replace(step=np.int32(7)), jax.devices()[0])
    with contextlib.closing(Checkpoints(workdir.checkpoints)) as checkpoints:
        checkpoints.save(state, position={}, config="{}")
