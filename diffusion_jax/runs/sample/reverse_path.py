"""The way of samples from noise to data, as arrays of the space in which the model works."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train.interruptible import interruptible


@dataclasses.dataclass(frozen=True)
class ReversePath:
    """The sampler's states of N samples at K times, and the x0 that is predicted from each: [K, N, *x_shape]."""

    times: np.ndarray  # [K], from 1 to 0
    x: np.ndarray
    x0: np.ndarray


def reverse_path(trained: Trained, seeds: np.ndarray, cond: Mapping[str, np.ndarray], columns: int) -> ReversePath:
    """The path of samples with seeds [N] and conditions cond, at no more times than columns."""
    num = len(seeds)
    program, times = experiment.trajectory_program(trained.model, trained.how, trained.mesh, columns=columns)
    take = np.arange(-(-num // trained.share) * trained.share).clip(max=num - 1)
    padded = {name: a[take] for name, a in cond.items()}
    drawn = interruptible(lambda: jax.device_get(program(trained.params, trained.pretrained, seeds[take], padded)))
    x, x0 = (part[:, :num] for part in drawn)
    return ReversePath(np.asarray(times), x, x0)


def decoded(trained: Trained, x: np.ndarray) -> np.ndarray:
    """Images [K, N, H, W, C] of states x [K, N, *x_shape]; x itself where the model works in pixels."""
    model = trained.model
    if model.autoencoder is None:
        return x
    decode = jax.jit(lambda pretrained, x: model.decode(pretrained, x, trained.how.decode_tile))
    # One time after the other: all at once would take the memory of all.
    return np.stack([np.asarray(decode(trained.pretrained, at), np.float32) for at in x])
