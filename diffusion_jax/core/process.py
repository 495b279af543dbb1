"""The forward process q and its posterior, for any two times s < t of any schedule."""

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.arguments import check_same_shape
from diffusion_jax.core.schedules import Level, Schedule


def diffuse(x0: Array, eps: Array, level: Level) -> Array:
    """x_t = alpha x_0 + sigma eps [B, ...], eq. 4 of DDPM, of x0 and eps [B, ...]; level has scalars or [B]."""
    check_same_shape(x0=x0, eps=eps)
    alpha, sigma = level.like(x0)
    return alpha * x0 + sigma * eps


def transition(s: Level, t: Level) -> tuple[Array, Array]:
    """(ratio, variance) of q(x_t | x_s) = N(ratio x_s, variance I), s < t: eq. 25 of VDM (arXiv:2107.00630).

    They have the shape of the levels. For neighbouring times of a DDPM chain they are sqrt(1 - beta) and beta.
    """
    ratio = t.alpha / s.alpha
    return ratio, jnp.maximum(t.sigma**2 - (ratio * s.sigma) ** 2, 0.0)


def posterior(s: Level, t: Level) -> tuple[Array, Array, Array]:
    """(a, b, variance) of q(x_s | x_t, x_0) = N(a x_t + b x_0, variance I), s < t, sigma(t) > 0: eq. 6, 7 of DDPM."""
    ratio, variance = transition(s, t)
    return (
        ratio * s.sigma**2 / t.sigma**2,
        s.alpha * variance / t.sigma**2,
        variance * s.sigma**2 / t.sigma**2,
    )


def log_variances(levels: Level) -> tuple[Array, Array]:
    """(log beta tilde, log beta) of each step of a chain, [N] each, by its levels [N + 1] from noise to data.

    Improved DDPM (arXiv:2102.09672, eq. 15) interpolates a learned variance between them. Where the chain ends at the
    data itself, the posterior variance of the last step is 0. As in that paper's code, its beta tilde is then that of
    the step before, and in a chain of one step beta.
    """
    t, s = Level(*(a[:-1] for a in levels)), Level(*(a[1:] for a in levels))
    small, large = posterior(s, t)[2], transition(s, t)[1]
    before = jnp.concatenate([large[:1], small[:-1]])
    return jnp.log(jnp.where(s.sigma > 0, small, before)), jnp.log(large)


def chain(x0: Array, eps: Array, schedule: Schedule, times: Array) -> Array:
    """x at times[1:] by the forward chain, one transition q(x_t | x_s) after another: [N, *x0.shape].

    times [N + 1] rises from times[0] = 0, and eps [N, *x0.shape] is the noise of each transition. `diffuse` samples the
    same marginals in one step; the chain samples their joint distribution.
    """
    levels = schedule.level(times)
    s, t = (jax.tree.map(lambda a, part=part: a[part], levels) for part in (slice(None, -1), slice(1, None)))

    def step(x, inputs):
        (ratio, variance), noise = inputs
        x = ratio * x + jnp.sqrt(variance) * noise
        return x, x

    return jax.lax.scan(step, x0, (transition(s, t), eps))[1]
