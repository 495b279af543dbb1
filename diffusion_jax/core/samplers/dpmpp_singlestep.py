"""DPM-Solver++ as single-step methods, and their SDE forms: two network evaluations a step, no memory."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.process import posterior
from diffusion_jax.core.samplers.exponential import log_ratio
from diffusion_jax.core.samplers.loop import Noise, Sampler, ends_at_data, steps_of, two_evaluations_a_step
from diffusion_jax.core.schedules import Level
from diffusion_jax.errors import UserError

_MAX_LAMBDA = 14.0  # replaces inf where sigma = 0, and -14 replaces -inf where alpha = 0: each step has a middle


class Stage(NamedTuple):
    """The coefficients of one of the two evaluations of a step, from x_start at its beginning.

    x = keep x_start + old x0_start + new x0 + std z, with the prediction x0 of this evaluation and x0_start of the
    first. In the second stage of `dpmpp_sde`, z = shared z_0 + sqrt(1 - shared^2) z_1 with the first stage's z_0.
    """

    is_first: Array  # bool
    keep: Array
    old: Array
    new: Array
    std: Array
    shared: Array


Carry = tuple[Array, Array, Array]
"""x, and x and its prediction x0 at the first evaluation of the step."""


def dpmpp_2s(eta: float = 0.0, r: float = 0.5, s_noise: float = 1.0) -> Sampler:
    """DPM-Solver++(2S), algorithm 1 of arXiv:2211.01095, evaluated at the fraction r of each step in lambda.

    u = (sigma_m / sigma_t) x_t + alpha_m (1 - e^(-r h)) x0(x_t, t), then
    x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) ((1 - 1 / (2 r)) x0(x_t, t) + x0(u, m) / (2 r)).
    Second order where eta = 0. With eta > 0 each step goes down to the sigma_down of `euler_ancestral` and adds its
    noise, multiplied by s_noise, as k-diffusion's dpmpp_2s_ancestral does. The step to the data takes one evaluation.
    Raises UserError unless eta is in [0, 1] and r in (0, 1).
    """
    return _singlestep("dpmpp_2s", eta, r, s_noise, noisy_middle=False)


def dpmpp_sde(eta: float = 1.0, r: float = 0.5, s_noise: float = 1.0) -> Sampler:
    """`dpmpp_2s` with noise at the middle of a step too, as k-diffusion's sampler of that name.

    Both noises belong to one Brownian path: that of the middle is the first part of the step's. Arguments and errors
    are those of `dpmpp_2s`.
    """
    return _singlestep("dpmpp_sde", eta, r, s_noise, noisy_middle=True)


def _singlestep(name: str, eta: float, r: float, s_noise: float, *, noisy_middle: bool) -> Sampler:
    if not 0 <= eta <= 1:
        raise UserError(f"sampler {name} takes eta in [0, 1]; got {eta}")
    if not 0 < r < 1:
        raise UserError(f"sampler {name} takes r in (0, 1); got {r}")

    def ancestral(t: Level, s: Level) -> tuple[Level, Array]:
        """The level to which a step goes without noise, and the deviation of the noise that leads from there to s."""
        std = eta * jnp.sqrt(posterior(s, t)[2])
        return Level(s.alpha, jnp.sqrt(jnp.maximum(s.sigma**2 - std**2, 0.0))), std

    def plan(schedule, times):
        t, s = steps_of(schedule, times)
        single = ends_at_data(schedule, times)
        to_data = (jnp.arange(len(times) - 1) == len(times) - 2) & single  # this step has only its first stage
        start = jnp.maximum(log_ratio(t), -_MAX_LAMBDA)
        down, std = ancestral(t, s)
        end = jnp.minimum(log_ratio(s if noisy_middle else down), _MAX_LAMBDA)
        m_time = schedule.time(2 * (start + r * (end - start)))
        m = schedule.level(m_time)
        m_down, m_std = ancestral(t, m) if noisy_middle else (m, jnp.zeros_like(std))
        m_std = jnp.where(to_data, 0.0, m_std)

        def exponential(target: Level) -> tuple[Array, Array]:
            return target.sigma / t.sigma, -target.alpha * jnp.expm1(start - log_ratio(target))

        keep, weight = exponential(down)
        m_keep, m_weight = (jnp.where(to_data, a, b) for a, b in zip((keep, weight), exponential(m_down), strict=True))
        # The deterministic step from m to s shrinks the noise of the middle.
        shared = ancestral(m, s)[0].sigma / m.sigma * m_std / jnp.where(std > 0, std, 1.0)
        one, zero = jnp.ones_like(std), jnp.zeros_like(std)
        first = Stage(one > 0, m_keep, zero, m_weight, s_noise * m_std, one)
        second = Stage(
            one < 0, keep, weight * (1 - 0.5 / r), weight * 0.5 / r, s_noise * std, jnp.clip(shared, 0.0, 1.0)
        )
        return two_evaluations_a_step(times, (times[:-1], m_time), (first, second), last=1 if single else 2)

    def update(denoise: Denoiser, carry: Carry, t: Array, stage: Stage, noise: Noise) -> Carry:
        x, start, x0_start = carry
        start = jnp.where(stage.is_first, x, start)
        x0 = denoise(x, t).x0
        x = stage.keep * start + stage.old * x0_start + stage.new * x0
        if eta:
            z = stage.shared * noise(0) + jnp.sqrt(1 - stage.shared**2) * noise(1) if noisy_middle else noise()
            x = x + stage.std * z
        return x, start, x0

    return Sampler(
        plan, update, init=lambda x: (x, jnp.zeros_like(x), jnp.zeros_like(x)), finish=lambda carry: carry[0]
    )
