"""VDM's variational bound in continuous time: L_vlb of a chain in the limit of infinitely many steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.arguments import check_one_each, check_same_shape
from diffusion_jax.core.bound import bits_per_dim, prior_term
from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.process import diffuse
from diffusion_jax.core.schedules import Level, Schedule
from diffusion_jax.errors import UserError


class ContinuousBound(NamedTuple):
    """-log p(x_0) <= prior + diffusion + reconstruction, section 3.4 of VDM (arXiv:2107.00630), in bits per dim."""

    prior: Array  # [B]
    diffusion: Array  # [B]
    reconstruction: Array  # [B]

    @property
    def total(self) -> Array:
        """The sum of the three terms, [B]."""
        return self.prior + self.diffusion + self.reconstruction


def continuous_bound(
    denoise: Denoiser,
    schedule: Schedule,
    x0: Array,
    u: Array,
    eps: Array,
    eps_start: Array,
    *,
    start: float | None = None,
) -> ContinuousBound:
    """An unbiased draw of VDM's bound for each 8-bit image x0 [B, ...] in [-1, 1], with one denoiser call.

    u [B] in (0, 1] is uniform, at best of low discrepancy, and eps and eps_start [B, ...] are standard normal. The
    diffusion loss is the integral over times [start, 1], and the reconstruction decodes x_start. start is by default
    the schedule's t_min. Raises UserError where the schedule has no noise at start.

    The bound is differentiable in the parameters of a learned schedule and trains them. For an evaluation,
    `diffusion_term` has a smaller variance and `core.reconstruction.reconstruction_term` a better decoder.
    """
    check_one_each(x0, u=u)
    check_same_shape(x0=x0, eps=eps, eps_start=eps_start)
    start = schedule.t_min if start is None else start
    if start <= 0 and schedule.t_min > 0:
        raise UserError(f"the bound starts where the schedule has noise, at a time greater than 0; got {start}")
    t = start + (1.0 - start) * u
    slope = jax.jvp(schedule.logsnr, (t,), (jnp.ones_like(t),))[1]
    x = diffuse(x0, eps, schedule.level(t))
    # Section 4 of VDM: -SNR'(t) / 2 times the error of x0 is -logsnr'(t) / 2 times the error of eps.
    error = (eps - denoise(x, t).eps) ** 2
    diffusion = -0.5 * (1.0 - start) * slope * bits_per_dim(error)
    first = schedule.level(jnp.full_like(t, start))
    reconstruction = -bits_per_dim(decoder_log_likelihood(x0, diffuse(x0, eps_start, first), first))
    return ContinuousBound(prior_term(x0, schedule), diffusion, reconstruction)


def diffusion_term(
    denoise: Denoiser, schedule: Schedule, x0: Array, u: Array, eps: Array, *, start: float | Array
) -> Array:
    """An unbiased draw of the integral over log-SNR of half the squared error of eps, from t = start to 1; [B].

    It is in bits per dimension, for x0 and standard normal eps [B, ...]. u [B] is uniform in [0, 1] and chooses the
    log-SNR, linearly between its values at start and at t = 1, so that VDM's weight -logsnr'(t) dt (section 4) is
    constant. The error lies between 0 and about 1 at every log-SNR, which leaves a small variance with stratified u.
    Uniform times would have weights of up to 1 / start: with 64 stratified draws of images of 64 pixels, on `vp` from
    t = 1e-3, the mean deviates by 0.2 bits and would deviate by 2; from 1e-5, by 0.3 and by 32.
    """
    first, last = schedule.logsnr(jnp.asarray(start, jnp.float32)), schedule.logsnr(jnp.float32(1.0))
    t = schedule.time(first + (last - first) * u)
    error = (eps - denoise(diffuse(x0, eps, schedule.level(t)), t).eps) ** 2
    return 0.5 * (first - last) * bits_per_dim(error)


def decoder_log_likelihood(x0: Array, x: Array, level: Level) -> Array:
    """log p(x0 | x) in nats, elementwise: p is proportional to q(x | x0) over the 256 values of x0, as in VDM."""
    alpha, sigma = level.like(x)

    def logit(value):
        return -0.5 * ((x - alpha * value) / sigma) ** 2

    def add(total, value):
        return jnp.logaddexp(total, logit(value)), None

    # One value after another: all at once would hold 256 copies of the images in memory.
    values = 2 * jnp.arange(256) / 255 - 1
    total = jax.lax.scan(add, jnp.full_like(x, -jnp.inf), values)[0]
    return logit(x0) - total
