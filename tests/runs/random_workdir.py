"""Workdirs whose parameters are random: nothing is trained, and everything can be drawn from them."""

import contextlib

import jax
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.config import base
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train.checkpoint import Checkpoints


def save_state(workdir, config, *, abstract=None, scale=0.3, step=7, seed=0, same_average=False, **options):
    """Writes config and a checkpoint into a workdir: the state at a step, of normal numbers times scale.

    abstract has the state's shapes, by default those of config's own training. With same_average, the average is the
    parameters. options are those of `Checkpoints.save`. Gives the state, as arrays of the host.
    """
    workdir.write_config(config)
    rng = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda a: np.asarray(scale * rng.standard_normal(a.shape), a.dtype),
        abstract_state(config) if abstract is None else abstract,
    )
    state = state._replace(step=np.int32(step), **{"ema": state.params} if same_average else {})
    with contextlib.closing(Checkpoints(workdir.checkpoints)) as checkpoints:
        checkpoints.save(jax.device_put(state, jax.devices()[0]), position={}, config="{}", **options)
    return state


def abstract_state(config):
    """The shapes of the training state of config, of any task."""
    of_task = {"autoencoder": experiment.autoencoder, "classifier": experiment.classifier}
    if config.task in of_task:
        trainee = of_task[config.task].trainee(config)
    else:
        trainee = experiment.trainee(config, experiment.model(config))
    return experiment.abstract_state(config, trainee)


def write(root, task):
    """A model of the digits, or a classifier of them, at step 7."""
    save_state(Workdir(root), digits(task))


def digits(task):
    """A config of a small network of 8 x 8 images in ten classes."""
    config = base()
    config.data.shape = (8, 8, 1)
    config.task, config.schedule, config.prediction = task, "cosine(steps=50)", "v"
    config.model.update(channels=4, multipliers=(1,), blocks=1, attention=(), groups=2, num_classes=10)
    config.model.head_channels = 4
    config.sample.update(sampler="ddim", steps=3, threshold="static")
    return config
