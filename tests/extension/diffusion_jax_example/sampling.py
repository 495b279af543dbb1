"""A sampler in one function."""

import jax.numpy as jnp

from diffusion_jax.core.samplers import Sampler
from diffusion_jax.core.samplers.loop import one_evaluation_a_step, steps_of


def plain_euler(stretch: float = 1.0) -> Sampler:
    """x_s = alpha_s x0 + sigma_s eps, eps `stretch` times what was predicted: DDIM where stretch is 1."""

    def plan(schedule, times):
        _, s = steps_of(schedule, times)
        return one_evaluation_a_step(times, (s.alpha, jnp.float32(stretch) * s.sigma))

    def update(denoise, x, t, coefficients, noise):
        alpha, sigma = coefficients
        prediction = denoise(x, t)
        return alpha * prediction.x0 + sigma * prediction.eps

    return Sampler(plan, update)
