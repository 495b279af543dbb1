"""The time at which the likelihood of 8-bit images begins, and the decoder -log p(x0 | x_start) of the image.

A diffusion model is a density of x_start, the image with the noise of a first level. For 8-bit images x0 any start
gives a bound, the variational step of DDPM (arXiv:2006.11239, section 3.3) and VDM (arXiv:2107.00630, section 3.3):

    -log p(x0) <= E over q(x_start | x0) of  log q(x_start | x0) - log p(x_start) - log p(x0 | x_start),

with equality where p(x0 | x_start) is the model's own posterior. So a late start, as on a short chain, costs the
difference between the decoder p(x0 | x_start) and that posterior, and not the noise itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.process import diffuse
from diffusion_jax.core.schedules import Level, Schedule
from diffusion_jax.core.vdm_bound import decoder_log_likelihood

HALF_BIN = 1 / 255
"""Half the distance between two neighbouring values of an 8-bit image in [-1, 1]."""

EARLIEST = 1e-5
"""The first time of a likelihood in score-SDE's code (arXiv:2011.13456). Training with uniform times in (0, 1] draws so
few times below it that the network may not have learned them."""


def first_time(schedule: Schedule) -> float:
    """The time at which the likelihood of 8-bit images begins: where sigma / alpha first reaches half a bin.

    At that level the noise hides the value of a pixel from a model of smooth densities, but not from the decoder. On a
    chain the time is one of the steps, 1 / T or later, because no other time is trained. On a continuous schedule it is
    not before `EARLIEST`. On a learned schedule it is 0, the first level of the model itself.
    """
    if schedule.t_min == 0:
        return 0.0
    with jax.ensure_compile_time_eval():
        if schedule.steps is None:
            return float(np.clip(schedule.time(jnp.float32(-2 * np.log(HALF_BIN))), EARLIEST, 1.0))
        times = np.arange(1, schedule.steps + 1) / schedule.steps
        alpha, sigma = (np.asarray(a, np.float64) for a in schedule.level(jnp.asarray(times, jnp.float32)))
        return float(times[np.argmax(sigma >= HALF_BIN * alpha)])


def log_gaussian(eps: Array, sigma: Array) -> Array:
    """log q(x | x0) in nats [B] of x = alpha x0 + sigma eps, by its noise eps [B, ...] and the scalar sigma."""
    square = jnp.sum(eps**2, axis=tuple(range(1, eps.ndim)))
    return -0.5 * square - np.prod(eps.shape[1:]) * (jnp.log(sigma) + 0.5 * np.log(2 * np.pi))


def reconstruction_term(
    denoise: Denoiser, schedule: Schedule, start: float, x0: Array, eps: Array, probe: Array
) -> Array:
    """-log p(x0 | x_start) in nats [B] of 8-bit images x0 [B, ...] in [-1, 1], x_start = alpha x0 + sigma eps.

    eps [B, ...] is standard normal, and probe [B, ...] has random signs +-1. In each dimension p is proportional, over
    the 256 values, to a normal density around the denoiser's x0. Its variance is the mean over the dimensions of the
    posterior variance sigma^2 / alpha dx0 / dx_start (Tweedie's formula of second order), which one forward derivative
    along probe estimates. The variance is at most (sigma / alpha)^2. It is at least the square of a quarter of a bin,
    which costs 1e-3 bits where the model knows the value.

    So p is the model's own posterior for data that are smooth on the scale of sigma, and for values that the model
    knows. Where the posterior has different variances in the dimensions, or correlations, the mean variance costs, in
    bits per dimension, half of log2 of its ratio to the geometric mean of the eigenvalues of the covariance.
    """
    alpha, sigma = schedule.level(jnp.asarray(start, jnp.float32))
    x = diffuse(x0, eps, Level(alpha, sigma))
    t = jnp.full(x0.shape[0], start, jnp.float32)
    mean, slope = jax.jvp(lambda x: denoise(x, t).x0, (x,), (probe,))
    axes = tuple(range(1, x0.ndim))
    variance = sigma**2 / alpha * jnp.mean(probe * slope, axis=axes)  # [B]
    least = (0.5 * HALF_BIN) ** 2
    std = jnp.sqrt(jnp.clip(variance, least, jnp.maximum((sigma / alpha) ** 2, least)))
    return -jnp.sum(decoder_log_likelihood(x0, mean, Level(jnp.ones_like(std), std)), axis=axes)
