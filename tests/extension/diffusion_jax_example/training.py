"""An objective in one function: the squared error of x0, cut off where one example would rule the batch."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from diffusion_jax.core import denoisers
from diffusion_jax.core.objectives import MakeObjective, Noised, Objective, Setting, Trained, denoising


def bounded(limit: float = 4.0) -> MakeObjective:
    """limit tanh(L / limit), L the mean squared error of x0: [B]."""

    def make(setting: Setting) -> Objective:
        def loss(trained: Trained, values: Noised) -> Array:
            level = trained.schedule.level(values.t)
            alpha, sigma = level.like(values.x0)
            x = alpha * values.x0 + sigma * values.eps
            denoise = denoisers.from_network(trained.apply, trained.schedule, setting.parameterization)
            error = denoisers.condition(denoise, values.cond)(x, values.t).x0 - values.x0
            return limit * jnp.tanh(jnp.mean(error.reshape(len(error), -1) ** 2, axis=1) / limit)

        return dataclasses.replace(denoising(setting, loss))

    return make
