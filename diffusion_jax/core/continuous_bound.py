"""The variational bound in continuous time: the chain's L_vlb in the limit of infinitely many steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.bound import bits_per_dim, prior_term
from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.process import diffuse
from diffusion_jax.core.schedules import Level, Schedule


class ContinuousBound(NamedTuple):
    """-log p(x_0) <= prior + diffusion + reconstruction, section 3.4 of VDM (arXiv:2107.00630), in bits per dim."""

    prior: Array  # [B]
    diffusion: Array  # [B]
    reconstruction: Array  # [B]

    @property
    def total(self) -> Array:
        """Their sum [B]."""
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
    """One unbiased draw of VDM's bound for each 8-bit image x0 [B, ...] in [-1, 1], by one denoiser call.

    u [B] in (0, 1] is uniform, best of low discrepancy; eps and eps_start [B, ...] are standard normal. The diffusion
    loss integrates over [start, 1] and the reconstruction decodes x_start, so that start, the schedule's t_min unless
    given, needs noise. Differentiable in the parameters of a learned schedule.
    """
    start = schedule.t_min if start is None else start
    t = start + (1.0 - start) * u
    slope = jax.jvp(schedule.logsnr, (t,), (jnp.ones_like(t),))[1]
    x = diffuse(x0, eps, schedule.level(t))
    # Its section 4: -SNR'(t) / 2 times the error of x0, which is -logsnr'(t) / 2 times that of eps.
    error = (eps - denoise(x, t).eps) ** 2
    diffusion = -0.5 * (1.0 - start) * slope * bits_per_dim(error)
    first = schedule.level(jnp.full_like(t, start))
    reconstruction = -bits_per_dim(decoder_log_likelihood(x0, diffuse(x0, eps_start, first), first))
    return ContinuousBound(prior_term(x0, schedule), diffusion, reconstruction)


def decoder_log_likelihood(x0: Array, x: Array, level: Level) -> Array:
    """log p(x0 | x) elementwise in nats: p is proportional to q(x | x0) over the 256 values, as in VDM."""
    alpha, sigma = level.like(x)

    def logit(value):
        return -0.5 * ((x - alpha * value) / sigma) ** 2

    def add(total, value):
        return jnp.logaddexp(total, logit(value)), None

    # One value at a time: all 256 at once would hold 256 images.
    values = 2 * jnp.arange(256) / 255 - 1
    total = jax.lax.scan(add, jnp.full_like(x, -jnp.inf), values)[0]
    return logit(x0) - total
