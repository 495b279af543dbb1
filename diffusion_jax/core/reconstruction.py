"""Where the likelihood of 8-bit images begins, and the step from there to the image: -log p(x0 | x_start).

A diffusion model is a density of x_start, the image with the noise of its first level. For 8-bit images x0 any start
gives a bound, the variational step of DDPM (arXiv:2006.11239, section 3.3) and VDM (arXiv:2107.00630, section 3.3):

    -log p(x0) <= E over q(x_start | x0) of  log q(x_start | x0) - log p(x_start) - log p(x0 | x_start),

with equality where p(x0 | x_start) is the model's own posterior. So a late start, as on a short chain, costs what the
decoder p(x0 | x_start) lacks of that posterior, and not the noise itself.
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
"""Half the distance of two values of an 8-bit image in [-1, 1]."""

EARLIEST = 1e-5
"""The first time of a likelihood in score-SDE's code (arXiv:2011.13456); of uniform times in (0, 1], training draws so
few below it that a network is not known to have learned them."""


def first_time(schedule: Schedule) -> float:
    """The time at which the likelihood of 8-bit images begins: where sigma / alpha first reaches half a bin.

    There the noise hides which value a pixel had from a model of smooth densities, which would pay for knowing it, and
    no more than the decoder can make good. On a chain it is one of the steps, 1 / T or later, since no other is
    trained; on a continuous schedule not before `EARLIEST`; on a learned one 0, the model's own first level.
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
    """log q(x | x0) in nats [B] of x = alpha x0 + sigma eps: the density of its noise eps [B, ...], sigma a scalar."""
    square = jnp.sum(eps**2, axis=tuple(range(1, eps.ndim)))
    return -0.5 * square - np.prod(eps.shape[1:]) * (jnp.log(sigma) + 0.5 * np.log(2 * np.pi))


def reconstruction_term(
    denoise: Denoiser, schedule: Schedule, start: float, x0: Array, eps: Array, probe: Array
) -> Array:
    """-log p(x0 | x_start) in nats [B] of 8-bit images x0 [B, ...] in [-1, 1], x_start = alpha x0 + sigma eps.

    p is, in each dimension, proportional over the 256 values to a normal density about the denoiser's x0. Its variance
    is the mean over the dimensions of the posterior's, sigma^2 / alpha dx0 / dx_start (Tweedie's formula of second
    order), found by one forward derivative along probe [B, ...] of +-1. It is at least the square of a quarter of a
    bin, which costs 1e-3 bits where the model knows the value, and at most (sigma / alpha)^2. So p is the model's own
    posterior for data that are smooth on the scale of sigma, and for values that the model knows. Where the posterior
    varies more in some dimensions than in others, or they are correlated, the mean variance costs half of log2 of its
    ratio to the geometric mean of the covariance's eigenvalues, in bits per dimension.
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
