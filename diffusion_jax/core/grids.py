"""Time grids: the N + 1 times, falling from noise to t = 0, on which a sampler takes its N steps."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError

Grid = Callable[[Schedule, int], np.ndarray]


def uniform() -> Grid:
    """t_n = 1 - n / N, whatever the schedule; between a discrete schedule's steps its table is interpolated."""
    return lambda schedule, steps: np.linspace(1.0, 0.0, _positive(steps) + 1)


def trailing() -> Grid:
    """Every (T / N)-th step of a discrete chain counted from its noisy end, inclusive; table 2 of arXiv:2305.08891.

    With N = T it is the paper's whole chain. On a continuous schedule it is `uniform`.
    """

    def grid(schedule: Schedule, steps: int) -> np.ndarray:
        times = np.linspace(1.0, 0.0, _positive(steps) + 1)
        if schedule.steps is None:
            return times
        return np.round(times * _at_least(schedule.steps, steps)) / schedule.steps

    return grid


def leading() -> Grid:
    """Every floor(T / N)-th step of a discrete chain from its first, as DDIM's code does; misses the noisy end."""

    def grid(schedule: Schedule, steps: int) -> np.ndarray:
        if schedule.steps is None:
            raise UserError("time grid 'leading' needs a discrete schedule; use 'uniform'")
        stride = _at_least(schedule.steps, _positive(steps)) // steps
        return np.append((np.arange(steps)[::-1] * stride + 1) / schedule.steps, 0.0)

    return grid


def quadratic(end: float = 1.0) -> Grid:
    """t falls as a square from `end`: small steps near the data; DDIM's "quad" (arXiv:2010.02502, appendix D.2).

    On a discrete chain the indices are floor((k sqrt(end T) / (N - 1))^2), k = N - 1 .. 0, raised where two would be
    equal; DDIM's code has end = 0.8. On a continuous schedule t_n = end (1 - n / N)^2.
    """
    if not 0 < end <= 1:
        raise UserError(f"time grid 'quadratic' takes end in (0, 1]; got {end}")

    def grid(schedule: Schedule, steps: int) -> np.ndarray:
        if schedule.steps is None:
            return end * np.linspace(1.0, 0.0, _positive(steps) + 1) ** 2
        total = _at_least(schedule.steps, _positive(steps))
        if steps > end * total:
            raise UserError(f"time grid 'quadratic(end={end})' has {int(end * total)} steps at most; got {steps}")
        squares = np.linspace(0.0, math.sqrt(end * total), steps) ** 2 if steps > 1 else np.array([end * total])
        index = np.minimum(squares.astype(int), total - 1)
        return np.append((np.maximum(index, np.arange(steps))[::-1] + 1) / total, 0.0)

    return grid


def karras(rho: float = 7.0, sigma_min: float = 0.0, sigma_max: float = math.inf) -> Grid:
    """(sigma / alpha)^(1 / rho) falls linearly over N times, then t = 0; eq. 5 of EDM (arXiv:2206.00364).

    From sigma_max, or the schedule's own noise level at t = 1 where that is less, to sigma_min, or its level at t_min
    where that is more. The first time is 1 in any case. Needs a sigma_max where the schedule has no signal at t = 1.
    """
    if rho <= 0:
        raise UserError(f"time grid 'karras' takes rho > 0; got {rho}")
    power = lambda sigma: sigma ** (1 / rho)  # noqa: E731
    return _over_noise("karras", sigma_min, sigma_max, power, lambda u: u**rho)


def logsnr(sigma_min: float = 0.0, sigma_max: float = math.inf) -> Grid:
    """log-SNR rises linearly over N times, then t = 0: DPM-Solver's grid (arXiv:2206.00927, section 3.3).

    sigma_min and sigma_max bound sigma / alpha as in `karras`.
    """
    return _over_noise("logsnr", sigma_min, sigma_max, np.log, np.exp)


def _over_noise(
    name: str,
    sigma_min: float,
    sigma_max: float,
    forward: Callable[[np.ndarray], np.ndarray],
    inverse: Callable[[np.ndarray], np.ndarray],
) -> Grid:
    """N noise levels sigma / alpha between the bounds, equally spaced in forward(level), and then the data."""
    if not 0 <= sigma_min < sigma_max:
        raise UserError(f"time grid {name!r} takes 0 <= sigma_min < sigma_max; got {sigma_min} and {sigma_max}")

    def grid(schedule: Schedule, steps: int) -> np.ndarray:
        _positive(steps)
        with jax.ensure_compile_time_eval():
            alpha, sigma = schedule.level(jnp.array([schedule.t_min, 1.0]))
            if alpha[1] == 0 and sigma_max == math.inf:
                raise UserError(
                    f"the schedule has no signal at t = 1, so time grid {name!r} needs an end, as in "
                    f"{name}(sigma_max=80.0); or use 'trailing'"
                )
            low, high = np.asarray(sigma, np.float64) / np.maximum(np.asarray(alpha, np.float64), 1e-12)
            low, high = max(low, sigma_min), min(high, sigma_max)
            levels = inverse(np.linspace(forward(high), forward(low), steps))
            times = np.asarray(schedule.time(jnp.asarray(-2 * np.log(levels))), np.float64)
        times[0] = 1.0
        return np.append(times, 0.0)

    return grid


def _positive(steps: int) -> int:
    if steps < 1:
        raise UserError(f"sampling takes at least 1 step; got {steps}")
    return steps


def _at_least(total: int, steps: int) -> int:
    if steps > total:
        raise UserError(f"the schedule has {total} steps, so sampling takes at most that many; got {steps}")
    return total


GRIDS: dict[str, Callable[..., Grid]] = {
    "uniform": uniform,
    "trailing": trailing,
    "leading": leading,
    "quadratic": quadratic,
    "karras": karras,
    "logsnr": logsnr,
}
