"""DDPM's ancestral sampler, DDIM and its inversion: x_s from x_t and one prediction."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.process import log_variances, posterior, transition
from diffusion_jax.core.samplers.loop import Noise, Plan, Sampler, is_concrete, one_evaluation_a_step, steps_of
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError


class PosteriorStep(NamedTuple):
    """The coefficients of a step: x_s = a x_t + b x0 + std z; every array is [N]."""

    a: Array
    b: Array
    std: Array


class LearnedStep(NamedTuple):
    """The coefficients of a step whose variance the network learns, between those of `log_variances`; each [N]."""

    a: Array
    b: Array
    log_small: Array
    log_large: Array
    stochastic: Array  # bool, whether the step adds noise


class DDIMStep(NamedTuple):
    """The coefficients of a step: x_s = alpha x0 + direction eps + std z; every array is [N]."""

    alpha: Array
    direction: Array
    std: Array


def ddpm(variance: str = "small") -> Sampler:
    """Ancestral sampling, algorithm 2 of DDPM (arXiv:2006.11239): x_s is drawn from q(x_s | x_t, x_0 = prediction).

    variance "small" is the posterior's (beta tilde), "large" the forward transition's (beta): section 3.2 there.
    "learned" is exp(v log beta + (1 - v) log beta tilde) for the network's v = `Prediction.fraction`: eq. 15 of
    improved DDPM (arXiv:2102.09672). The step that ends at the data adds no noise. Raises UserError for another
    variance and, when it is traced, where "learned" meets a prediction without a fraction.
    """
    if variance not in ("small", "large", "learned"):
        raise UserError(f"sampler ddpm takes variance 'small', 'large' or 'learned'; got {variance!r}")

    def plan(schedule, times):
        t, s = steps_of(schedule, times)
        a, b, small = posterior(s, t)
        stochastic = s.sigma > 0
        if variance == "learned":
            return one_evaluation_a_step(times, LearnedStep(a, b, *log_variances(schedule.level(times)), stochastic))
        large = jnp.where(stochastic, transition(s, t)[1], 0.0)
        return one_evaluation_a_step(times, PosteriorStep(a, b, jnp.sqrt(small if variance == "small" else large)))

    def update(denoise: Denoiser, x: Array, t: Array, step: PosteriorStep | LearnedStep, noise: Noise) -> Array:
        prediction = denoise(x, t)
        std = step.std if isinstance(step, PosteriorStep) else learned_std(step, prediction)
        return step.a * x + step.b * prediction.x0 + std * noise()

    def learned_std(step: LearnedStep, prediction: Prediction) -> Array:
        if prediction.fraction is None:
            raise UserError(
                "sampler ddpm(variance='learned') needs a network that predicts its variance; "
                "use variance='small' or 'large'"
            )
        log_variance = step.log_small + prediction.fraction * (step.log_large - step.log_small)
        return jnp.where(step.stochastic, jnp.exp(0.5 * log_variance), 0.0)

    return Sampler(plan, update)


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM, eq. 12 of Song et al. 2021 (arXiv:2010.02502): eta = 0 is deterministic, eta = 1 is the DDPM posterior.

    First order. With eta = 0 it is Euler's method for x / alpha as a function of sigma / alpha. Raises UserError unless
    eta is in [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UserError(f"sampler ddim takes eta in [0, 1]; got {eta}")
    return _non_markovian(eta, 1.0)


def euler_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> Sampler:
    """Euler's method down to sigma_down, then noise of deviation sigma_up: k-diffusion's sampler of that name.

    Where alpha = 1, sigma_up^2 = eta^2 sigma_s^2 (sigma_t^2 - sigma_s^2) / sigma_t^2 and sigma_down^2 = sigma_s^2 -
    sigma_up^2; on any other schedule this holds for x / alpha and sigma / alpha. It is DDIM of this eta with its noise
    multiplied by s_noise. Raises UserError unless eta is in [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UserError(f"sampler euler_ancestral takes eta in [0, 1]; got {eta}")
    return _non_markovian(eta, s_noise)


def _non_markovian(eta: float, s_noise: float) -> Sampler:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + s_noise std z, where std is eta times the posterior's."""

    def plan(schedule, times):
        t, s = steps_of(schedule, times)
        std = eta * jnp.sqrt(posterior(s, t)[2])
        direction = jnp.sqrt(jnp.maximum(s.sigma**2 - std**2, 0.0))
        return one_evaluation_a_step(times, DDIMStep(s.alpha, direction, s_noise * std))

    def update(denoise: Denoiser, x: Array, t: Array, step: DDIMStep, noise: Noise) -> Array:
        prediction = denoise(x, t)
        x = step.alpha * prediction.x0 + step.direction * prediction.eps
        return x + step.std * noise() if eta else x

    return Sampler(plan, update)


def ddim_inversion() -> Sampler:
    """DDIM from data to noise, over times that rise: section 4.3 of Song et al. 2021 (arXiv:2010.02502). First order.

    x_t = (alpha_t / alpha_s) x_s + (sigma_t - sigma_s alpha_t / alpha_s) eps, s < t, where eps is predicted for x_s at
    time t. It is not taken at s, which may be the data itself, where the network was not trained. `ddim` over the
    reversed times leads back, to first order too. alpha must be above 0 at every time but the last. Raises UserError
    for times that fall.
    """

    def plan(schedule: Schedule, times: Array) -> Plan:
        if is_concrete(times) and np.any(np.diff(times) < 0):
            raise UserError("ddim_inversion goes from data to noise, so its times rise; turn the time grid round")
        s, t = steps_of(schedule, times)
        ratio = t.alpha / s.alpha
        return Plan((ratio, t.sigma - ratio * s.sigma), times[1:], np.arange(len(times) - 1))

    def update(denoise, x, t, coefficients, noise):
        ratio, direction = coefficients
        return ratio * x + direction * denoise(x, t).eps

    return Sampler(plan, update)
