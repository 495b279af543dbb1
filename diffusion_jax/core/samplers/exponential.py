"""What exponential integrators share: lambda = log(alpha / sigma), their weights, the order of each step.

They solve x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^h e^(u - h) x0(lambda_t + u) du, h = lambda_s - lambda_t,
exactly but for x0, which they interpolate: eq. 8 of DPM-Solver++ (arXiv:2211.01095).
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.samplers.loop import ends_at_data
from diffusion_jax.core.schedules import Level, Schedule

_SERIES_BELOW = 1.0
_SERIES_TERMS = 18  # of the series at 1: to float64's resolution

_FEW_STEPS = 15  # below this DPM-Solver's authors lower the order of the last steps, for stability


def log_ratio(level: Level) -> Array:
    """lambda = log(alpha / sigma), half the log-SNR: -inf where there is no signal and inf where no noise."""
    return jnp.log(level.alpha) - jnp.log(level.sigma)


def moment(k: int, h: Array) -> Array:
    """int_0^1 h e^(h (v - 1)) v^k dv, the weight of (u / h)^k in a step of h in (0, inf].

    1 - e^-h for k = 0, then m_k = 1 - k m_{k-1} / h; in the papers' functions k! h phi_{k+1}(-h). Near 0, where the
    recursion cancels, by the series h k! sum_j (-h)^j / (j + k + 1)!.
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
    """[N] the order of each step of a multistep method: at most `order`, and one more than the usable past steps.

    A past step at which alpha = 0 is unusable: its lambda is -inf. With taper the last step is of order 1, the one
    before it at most 2 and so on, by default where there are fewer than 15 steps. A step that ends at sigma = 0 has
    order 1 in any case, for its h is inf.
    """
    steps = len(times) - 1
    n = jnp.arange(steps)
    usable = n + jnp.where(schedule.alpha(times[0]) > 0, 1, 0)
    result = jnp.clip(usable, 1, order)
    if steps < _FEW_STEPS if taper is None else taper:
        return jnp.minimum(result, steps - n)
    return jnp.where(n == steps - 1, 1, result) if ends_at_data(schedule, times) else result


def earlier(a: Array, steps: int) -> Array:
    """a[n - steps], and a[0] where there is none: [N]."""
    return a[np.maximum(np.arange(len(a)) - steps, 0)]
