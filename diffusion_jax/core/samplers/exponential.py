"""Exponential integrators: lambda = log(alpha / sigma), the weights of their steps, and the order of each step.

They solve x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^h e^(u - h) x0(lambda_t + u) du, h = lambda_s - lambda_t, with
an interpolated x0 and otherwise exactly: eq. 8 of DPM-Solver++ (arXiv:2211.01095).
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.samplers.loop import ends_at_data
from diffusion_jax.core.schedules import Level, Schedule

_SERIES_BELOW = 1.0
_SERIES_TERMS = 18  # which give float64's resolution at 1

_FEW_STEPS = 15  # with fewer steps, DPM-Solver's authors lower the order of the last ones, for stability


def log_ratio(level: Level) -> Array:
    """lambda = log(alpha / sigma), half the log-SNR: -inf where alpha = 0 and inf where sigma = 0."""
    return jnp.log(level.alpha) - jnp.log(level.sigma)


def moment(k: int, h: Array) -> Array:
    """m_k = int_0^1 h e^(h (v - 1)) v^k dv, the weight of (u / h)^k in a step of length h in (0, inf]; elementwise.

    m_0 = 1 - e^-h and m_k = 1 - k m_{k-1} / h, which is k! h phi_{k+1}(-h) with the papers' functions phi. Near h = 0,
    where the recursion cancels, it is the series h k! sum_j (-h)^j / (j + k + 1)!.
    """
    small = h < _SERIES_BELOW
    near, far = jnp.where(small, h, 0.0), jnp.where(small, 1.0, h)
    series = jnp.zeros_like(near)
    for j in reversed(range(_SERIES_TERMS)):
        series = math.factorial(k) / math.factorial(j + k + 1) - near * series
    closed = -jnp.expm1(-far)
    for i in range(1, k + 1):
        closed = 1.0 - i * closed / far
    return jnp.where(small, near * series, closed)


def orders(order: int, schedule: Schedule, times: Array, *, taper: bool | None = None) -> Array:
    """The order of each step of a multistep method, int [N]: at most `order`, and at most 1 + the usable past steps.

    A past step from alpha = 0 is not usable, for its lambda is -inf. With taper the last step is of order 1, the one
    before it at most of order 2, and so on; the default tapers where there are fewer than 15 steps. A step to sigma = 0
    is always of order 1, for its h is inf.
    """
    steps = len(times) - 1
    n = jnp.arange(steps)
    usable = n + jnp.where(schedule.alpha(times[0]) > 0, 1, 0)
    result = jnp.clip(usable, 1, order)
    if steps < _FEW_STEPS if taper is None else taper:
        return jnp.minimum(result, steps - n)
    return jnp.where(n == steps - 1, 1, result) if ends_at_data(schedule, times) else result


def earlier(a: Array, steps: int) -> Array:
    """The entry a[n - steps] for each n, and a[0] where n < steps: [N] -> [N]."""
    return a[np.maximum(np.arange(len(a)) - steps, 0)]
