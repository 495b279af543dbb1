"""The trapezoidal correction of an Euler step, which Heun's method and the first step of PLMS share."""

import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.schedules import Level

_LONG = 10.0  # times that sigma / alpha falls within a step


def trapezoidal_weight(t: Level, s: Level, above: float) -> Array:
    """w of x_s + w (eps_s - eps_t): what the second evaluation, at Euler's x_s, adds to Euler's step from t to s.

    The probability-flow ODE has two forms. d(x / alpha) / d(sigma / alpha) = eps is EDM's and regular at the data;
    d(x / sigma) / d(alpha / sigma) = x0 is regular where there is no signal. The trapezoidal rule of the first adds
    (sigma_s - sigma_t alpha_s / alpha_t) / 2 times eps_s - eps_t, or, because x_s = alpha_s x0 + sigma_s eps holds for
    both evaluations, alpha_s (r - 1) / 2 times x0_s - x0_t, with r the factor by which sigma / alpha falls. That grows
    without bound with r. The rule of the second adds alpha_s (1 - 1 / r) / 2 times x0_s - x0_t, at most half of it;
    it is exact to leading order in the noise, where x0 is linear in alpha / sigma. Both rules are of second order.
    The first is taken but where sigma / alpha falls to less than a tenth from more than `above`, the scale of the data
    or more: a cosine chain, whose sigma / alpha ends at 20,291, begins with such a step; EDM's own grids have none.
    """
    start, end = t.alpha / t.sigma, s.alpha / s.sigma  # inf at the data, 0 where there is no signal
    is_long = (start < 1 / above) & (_LONG * start < end)
    by_noise = s.sigma - s.alpha * t.sigma / jnp.where(is_long, 1.0, t.alpha)
    by_signal = t.alpha * s.sigma**2 / (t.sigma * s.alpha) - s.sigma
    return 0.5 * jnp.where(is_long, by_signal, by_noise)
