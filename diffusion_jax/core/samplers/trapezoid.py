"""The trapezoidal correction of an Euler step, for Heun's method and for the first step of PLMS."""

import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.schedules import Level

_LONG = 10.0  # a step is long where sigma / alpha falls by more than this factor


def trapezoidal_weight(t: Level, s: Level, above: float) -> Array:
    """The weight w [N] of the correction w (eps_s - eps_t) of Euler's step from level t to level s, both [N].

    eps_t is predicted at x_t, and eps_s at the x_s of Euler's step. The probability-flow ODE has two forms: d(x /
    alpha) / d(sigma / alpha) = eps, which EDM uses and which is regular at the data, and d(x / sigma) / d(alpha /
    sigma) = x0, which is regular where there is no signal. Let sigma / alpha fall by a factor r within the step. The
    trapezoidal rule of the first form adds (sigma_s - sigma_t alpha_s / alpha_t) / 2 times eps_s - eps_t. That equals
    alpha_s (r - 1) / 2 times x0_s - x0_t, because x_s = alpha_s x0 + sigma_s eps for both predictions, and grows with r
    without bound. The rule of the second form adds alpha_s (1 - 1 / r) / 2 times x0_s - x0_t, at most half of the
    difference, and is exact to leading order in the noise. Both are of second order.

    The first rule is used unless r > 10 and sigma / alpha of t is above `above`, which is the scale of the data or
    more. A cosine chain, whose sigma / alpha ends at 20,291, begins with such a step. EDM's grids have none.
    """
    start, end = t.alpha / t.sigma, s.alpha / s.sigma  # inf at the data, 0 where there is no signal
    is_long = (start < 1 / above) & (_LONG * start < end)
    by_noise = s.sigma - s.alpha * t.sigma / jnp.where(is_long, 1.0, t.alpha)
    by_signal = t.alpha * s.sigma**2 / (t.sigma * s.alpha) - s.sigma
    return 0.5 * jnp.where(is_long, by_signal, by_noise)
