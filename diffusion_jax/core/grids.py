"""Time grids: the N + 1 times, from noise down to t = 0, between which a sampler takes its N steps.

The grids that diffusers' schedulers take by timestep_spacing, and by steps_offset where it is not 0:

    DDIM, DDPM, PLMS, Euler, Heun   trailing, leading, leading(offset=1), linspace
    DPM-Solver++, UniPC             trailing, leading(skip_first=True), leading(offset=1, skip_first=True),
                                    linspace(skip_first=True)

Euler and Heun have whole=False in linspace. last="t_min" is set_alpha_to_one=False of DDIM and PLMS, and
final_sigmas_type="sigma_min" of the others.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError

Grid = Callable[[Schedule, int], np.ndarray]
"""(schedule, steps N) -> times [N + 1] float64, falling. Raises UserError for an N that the schedule cannot have."""


def uniform() -> Grid:
    """t_n = 1 - n / N on any schedule. Between the steps of a discrete schedule its table is interpolated."""
    return lambda schedule, steps: np.linspace(1.0, 0.0, _positive(steps) + 1)


def trailing(last: str = "data") -> Grid:
    """Every (T / N)-th step of a discrete chain counted from its noisy end, inclusive; table 2 of arXiv:2305.08891.

    With N = T it is the whole chain. On a continuous schedule it is `uniform`. last "t_min" ends at the schedule's
    t_min, 1 / T on a chain, in place of the data: diffusers' final_sigmas_type "sigma_min".
    """
    _check_last("trailing", last)

    def grid(schedule: Schedule, steps: int) -> np.ndarray:
        times = np.linspace(1.0, 0.0, _positive(steps) + 1)[:-1]
        if schedule.steps is not None:
            times = np.round(times * _at_least(schedule.steps, steps)) / schedule.steps
        return _with_last("trailing", times, schedule, last)

    return grid


def leading(offset: int = 0, skip_first: bool = False, last: str = "data") -> Grid:
    """Every floor(T / N)-th step of a discrete chain from its first, as in DDIM's code; it leaves out the noisy end.

    offset moves all steps towards the noise: 1 is Stable Diffusion's steps_offset. With skip_first the stride is
    floor(T / (N + 1)) and the first step is left out: diffusers' spacing "leading" for DPM-Solver++ and UniPC. last
    "t_min" ends at 1 / T in place of the data: diffusers' set_alpha_to_one=False, which Stable Diffusion has for DDIM
    and PLMS. Raises UserError for a continuous schedule, and for an offset beyond the chain.
    """
    if offset < 0:
        raise UserError(f"time grid 'leading' takes offset >= 0; got {offset}")
    _check_last("leading", last)

    def grid(schedule: Schedule, steps: int) -> np.ndarray:
        if schedule.steps is None:
            raise UserError("time grid 'leading' needs a discrete schedule; use 'uniform'")
        points = _positive(steps) + skip_first
        stride = _at_least(schedule.steps, steps, skip_first) // points
        index = np.arange(skip_first, points)[::-1] * stride + offset
        if index[0] >= schedule.steps:
            most = schedule.steps - 1 - (points - 1) * stride
            raise UserError(
                f"time grid 'leading' of {steps} steps takes offset up to {most} on a chain of {schedule.steps} steps; "
                f"got {offset}"
            )
        return _with_last("leading", (index + 1) / schedule.steps, schedule, last)

    return grid


def linspace(skip_first: bool = False, whole: bool = True, last: str = "data") -> Grid:
    """N times equally spaced from 1 to t_min, both included, and then the data; table 2 of arXiv:2305.08891.

    The indices of a chain are rounded to whole ones, as diffusers does for DDIM and PLMS; whole=False does not round
    them, as for Euler and Heun. With skip_first t_min is left out of N + 1 such times, as diffusers does for
    DPM-Solver++ and UniPC. A single step starts at 1; in diffusers it starts at 1 / T. On a continuous schedule the
    times are those of score-SDE (arXiv:2011.13456). last is as in `leading`.
    """
    _check_last("linspace", last)

    def grid(schedule: Schedule, steps: int) -> np.ndarray:
        points = _positive(steps) + skip_first
        if schedule.steps is None:
            return _with_last("linspace", np.linspace(1.0, schedule.t_min, points)[:steps], schedule, last)
        top = _at_least(schedule.steps, steps, skip_first) - 1
        index = np.linspace(0, top, points)[::-1][:steps] if points > 1 else np.array([top])
        return _with_last("linspace", ((index.round() if whole else index) + 1) / schedule.steps, schedule, last)

    return grid


def quadratic(end: float = 1.0) -> Grid:
    """t falls quadratically from `end`, with small steps near the data: DDIM's "quad" (arXiv:2010.02502, app. D.2).

    On a discrete chain the indices are floor((k sqrt(end T) / (N - 1))^2), k = N - 1 .. 0; where two would be equal,
    one is raised. DDIM's code has end = 0.8. On a continuous schedule t_n = end (1 - n / N)^2. Raises UserError unless
    end is in (0, 1].
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

    The levels go from sigma_max, or from the schedule's level at t = 1 if that is lower, to sigma_min, or to the level
    at t_min if that is higher. The first time is always 1. Raises UserError for a schedule without signal at t = 1
    unless sigma_max is given, and where the bounds leave no levels.
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
    """N noise levels sigma / alpha between the bounds, equally spaced in forward(level), then the data."""
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
            ends = np.asarray(sigma, np.float64) / np.maximum(np.asarray(alpha, np.float64), 1e-12)
            low, high = max(ends[0], sigma_min), min(ends[1], sigma_max)
            if steps > 1 and not low < high:
                raise UserError(
                    f"time grid {name!r} spreads {steps} steps over the noise levels sigma / alpha of the schedule, "
                    f"{ends[0]:.4g} to {ends[1]:.4g}, that lie between sigma_min and sigma_max, {sigma_min} and "
                    f"{sigma_max}; there are none, so change these or take 1 step"
                )
            levels = inverse(np.linspace(forward(high), forward(low), steps))
            times = np.asarray(schedule.time(jnp.asarray(-2 * np.log(levels))), np.float64)
        times[0] = 1.0
        return np.append(times, 0.0)

    return grid


def _check_last(name: str, last: str) -> None:
    if last not in ("data", "t_min"):
        raise UserError(f"time grid {name!r} takes last 'data' or 't_min'; got {last!r}")


def _with_last(name: str, times: np.ndarray, schedule: Schedule, last: str) -> np.ndarray:
    """The N times, and the time at which the last step ends."""
    if last == "data":
        return np.append(times, 0.0)
    if times[-1] <= schedule.t_min * (1 + 1e-9):
        raise UserError(
            f"time grid {name!r} starts its last step at the schedule's t_min, {schedule.t_min:.4g}, where "
            f"last='t_min' has it end; use fewer steps, an offset or skip_first=True, or last='data'"
        )
    return np.append(times, schedule.t_min)


def _positive(steps: int) -> int:
    if steps < 1:
        raise UserError(f"sampling takes at least 1 step; got {steps}")
    return steps


def _at_least(total: int, steps: int, skip_first: bool = False) -> int:
    if skip_first and steps >= total:
        raise UserError(
            f"the schedule has {total} steps and skip_first=True leaves one out, so sampling takes at most "
            f"{total - 1}; got {steps}"
        )
    if steps > total:
        raise UserError(f"the schedule has {total} steps, so sampling takes at most that many; got {steps}")
    return total


GRIDS: dict[str, Callable[..., Grid]] = {
    "uniform": uniform,
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "quadratic": quadratic,
    "karras": karras,
    "logsnr": logsnr,
}
