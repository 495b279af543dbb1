"""The samplers of Karras et al. 2022 (EDM, arXiv:2206.00364): Euler's and Heun's method with churn, on any schedule.

EDM's own alpha is 1. With x / alpha for its x and sigma / alpha for its sigma, its algorithms hold for any alpha.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.process import transition
from diffusion_jax.core.samplers.loop import (
    Sampler,
    ends_at_data,
    one_evaluation_a_step,
    steps_of,
    two_evaluations_a_step,
)
from diffusion_jax.core.samplers.trapezoid import trapezoidal_weight
from diffusion_jax.core.schedules import Level, Schedule
from diffusion_jax.errors import UserError

Churn = Callable[[Schedule, Array], tuple[Array, Level, tuple[Array, Array]]]
"""(schedule, times) -> each step's raised time and level, and (keep, std) with x_raised = keep x + std z."""


def euler(s_churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0) -> Sampler:
    """Algorithm 2 of EDM without its second evaluation: x_s = alpha_s x0 + sigma_s eps from a churned x_t.

    First order. Churn raises the noise level sigma / alpha by gamma = min(s_churn / N, sqrt(2) - 1) where it lies in
    [s_min, s_max], as far as the schedule goes. Without churn it is `ddim`.
    """
    churn = _churn("euler", s_churn, s_min, s_max, s_noise)

    def plan(schedule, times):
        time, _, noise = churn(schedule, times)
        s = steps_of(schedule, times)[1]
        return one_evaluation_a_step(times, (noise, s.alpha, s.sigma))._replace(t=time)

    def update(denoise, x, t, coefficients, noise):
        (keep, std), alpha, sigma = coefficients
        if s_churn:
            x = keep * x + std * noise()
        prediction = denoise(x, t)
        return alpha * prediction.x0 + sigma * prediction.eps

    return Sampler(plan, update)


def heun(s_churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0) -> Sampler:
    """Algorithm 2 of EDM, and algorithm 1 where s_churn = 0: Euler's step, then the trapezoidal rule. Second order.

    Churn as in `euler`. Two evaluations a step, one where sigma = 0 at its end. A step from where there is next to no
    signal has the weight that `trapezoidal_weight` says; EDM's own steps have EDM's.
    """
    churn = _churn("heun", s_churn, s_min, s_max, s_noise)

    def plan(schedule, times):
        time, t, (keep, std) = churn(schedule, times)
        s = steps_of(schedule, times)[1]
        half = trapezoidal_weight(t, s, above=1.0)
        one, zero = jnp.ones_like(half), jnp.zeros_like(half)
        first = ((keep, std), zero, s.alpha, s.sigma, zero)
        second = ((one, zero), one, zero, zero, half)
        last = 1 if ends_at_data(schedule, times) else 2
        return two_evaluations_a_step(times, (time, times[1:]), (first, second), last=last)

    def update(denoise, carry, t, coefficients, noise):
        x, eps = carry
        (keep, std), stay, alpha, sigma, half = coefficients
        if s_churn:
            x = keep * x + std * noise()
        prediction = denoise(x, t)
        x = stay * x + alpha * prediction.x0 + sigma * prediction.eps + half * (prediction.eps - eps)
        return x, prediction.eps

    return Sampler(plan, update, init=lambda x: (x, jnp.zeros_like(x)), finish=lambda carry: carry[0])


def _churn(name: str, s_churn: float, s_min: float, s_max: float, s_noise: float) -> Churn:
    if s_churn < 0 or not 0 <= s_min <= s_max:
        raise UserError(f"sampler {name} takes s_churn >= 0 and 0 <= s_min <= s_max; got {s_churn}, {s_min}, {s_max}")

    def churn(schedule: Schedule, times: Array) -> tuple[Array, Level, tuple[Array, Array]]:
        t = steps_of(schedule, times)[0]
        gamma = min(s_churn / (len(times) - 1), math.sqrt(2) - 1)
        ratio = t.sigma / t.alpha
        raised = (s_min <= ratio) & (ratio <= s_max) & (t.alpha > 0) if gamma else jnp.zeros_like(ratio, bool)
        time = jnp.where(raised, schedule.time(-2 * jnp.log(ratio * (1 + gamma))), times[:-1])
        hat = schedule.level(time)
        keep, variance = transition(t, hat)
        return time, hat, (jnp.where(raised, keep, 1.0), jnp.where(raised, s_noise * jnp.sqrt(variance), 0.0))

    return churn
