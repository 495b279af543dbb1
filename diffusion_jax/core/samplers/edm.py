"""The samplers of Karras et al. 2022 (EDM, arXiv:2206.00364): Euler's and Heun's method with churn, on any schedule.

In EDM alpha is 1. With x / alpha in the place of its x, and sigma / alpha of its sigma, its algorithms hold for any
alpha.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.process import transition
from diffusion_jax.core.samplers.loop import (
    Noise,
    Sampler,
    ends_at_data,
    one_evaluation_a_step,
    steps_of,
    two_evaluations_a_step,
)
from diffusion_jax.core.samplers.trapezoid import trapezoidal_weight
from diffusion_jax.core.schedules import Level, Schedule
from diffusion_jax.errors import UserError


class Raised(NamedTuple):
    """Where churn raises the noise of x_t at the beginning of each step; every array is [N]."""

    time: Array
    level: Level
    keep: Array  # x_raised = keep x_t + std z
    std: Array


Churn = Callable[[Schedule, Array], Raised]
"""(schedule, times [N + 1]) -> the raised noise of each step."""


class EulerStep(NamedTuple):
    """The coefficients of a step: x <- keep x + std z, then x <- alpha x0 + sigma eps of the prediction at x."""

    keep: Array
    std: Array
    alpha: Array
    sigma: Array


class HeunStage(NamedTuple):
    """The coefficients of one of the two evaluations of a step.

    x <- keep x + std z, then, with the prediction (x0, eps) at x and eps_before of the evaluation before,
    x <- stay x + alpha x0 + sigma eps + correction (eps - eps_before).
    """

    keep: Array
    std: Array
    stay: Array
    alpha: Array
    sigma: Array
    correction: Array


def euler(s_churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0) -> Sampler:
    """Euler's method, algorithm 2 of EDM without its second evaluation: x_s = alpha_s x0 + sigma_s eps. First order.

    Churn first raises the noise level sigma / alpha of x_t to 1 + gamma times itself by adding noise, with
    gamma = min(s_churn / N, sqrt(2) - 1), where the level lies in [s_min, s_max], but not above the schedule's highest.
    s_noise multiplies that noise. Without churn the sampler is `ddim`. Raises UserError unless s_churn >= 0 and
    0 <= s_min <= s_max.
    """
    churn = _churn("euler", s_churn, s_min, s_max, s_noise)

    def plan(schedule, times):
        raised = churn(schedule, times)
        s = steps_of(schedule, times)[1]
        return one_evaluation_a_step(times, EulerStep(raised.keep, raised.std, *s))._replace(t=raised.time)

    def update(denoise: Denoiser, x: Array, t: Array, step: EulerStep, noise: Noise) -> Array:
        if s_churn:
            x = step.keep * x + step.std * noise()
        prediction = denoise(x, t)
        return step.alpha * prediction.x0 + step.sigma * prediction.eps

    return Sampler(plan, update)


def heun(s_churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0) -> Sampler:
    """Heun's method: algorithm 2 of EDM and, without churn, algorithm 1. Second order.

    Euler's step is corrected by the trapezoidal rule with the prediction at its end: two evaluations a step, but one on
    the step to sigma = 0. `trapezoidal_weight` weights the correction, on EDM's grids by EDM's own 1/2. The
    arguments and errors are those of `euler`.
    """
    churn = _churn("heun", s_churn, s_min, s_max, s_noise)

    def plan(schedule, times):
        raised = churn(schedule, times)
        s = steps_of(schedule, times)[1]
        weight = trapezoidal_weight(raised.level, s, above=1.0)
        one, zero = jnp.ones_like(weight), jnp.zeros_like(weight)
        euler_step = HeunStage(raised.keep, raised.std, zero, s.alpha, s.sigma, zero)
        correction = HeunStage(keep=one, std=zero, stay=one, alpha=zero, sigma=zero, correction=weight)
        last = 1 if ends_at_data(schedule, times) else 2
        return two_evaluations_a_step(times, (raised.time, times[1:]), (euler_step, correction), last=last)

    def update(
        denoise: Denoiser, carry: tuple[Array, Array], t: Array, stage: HeunStage, noise: Noise
    ) -> tuple[Array, Array]:
        x, eps_before = carry
        if s_churn:
            x = stage.keep * x + stage.std * noise()
        x0, eps, _ = denoise(x, t)
        x = stage.stay * x + stage.alpha * x0 + stage.sigma * eps + stage.correction * (eps - eps_before)
        return x, eps

    return Sampler(plan, update, init=lambda x: (x, jnp.zeros_like(x)), finish=lambda carry: carry[0])


def _churn(name: str, s_churn: float, s_min: float, s_max: float, s_noise: float) -> Churn:
    if s_churn < 0 or not 0 <= s_min <= s_max:
        raise UserError(f"sampler {name} takes s_churn >= 0 and 0 <= s_min <= s_max; got {s_churn}, {s_min}, {s_max}")

    def churn(schedule: Schedule, times: Array) -> Raised:
        t = steps_of(schedule, times)[0]
        gamma = min(s_churn / (len(times) - 1), math.sqrt(2) - 1)
        ratio = t.sigma / t.alpha
        churned = (s_min <= ratio) & (ratio <= s_max) & (t.alpha > 0) if gamma else jnp.zeros_like(ratio, bool)
        time = jnp.where(churned, schedule.time(-2 * jnp.log(ratio * (1 + gamma))), times[:-1])
        level = schedule.level(time)
        keep, variance = transition(t, level)
        std = s_noise * jnp.sqrt(variance)
        return Raised(time, level, jnp.where(churned, keep, 1.0), jnp.where(churned, std, 0.0))

    return churn
