"""DDPM's ancestral sampler, DDIM and its inversion: x_s from x_t and one prediction."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.process import log_variances, posterior, transition
from diffusion_jax.core.samplers.loop import Plan, Sampler, is_concrete, one_evaluation_a_step, steps_of
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError


def ddpm(variance: str = "small") -> Sampler:
    """Ancestral sampling, algorithm 2 of DDPM (arXiv:2006.11239): draws x_s from q(x_s | x_t, x_0 = prediction).

    variance "small" is the posterior's (beta tilde), "large" the forward transition's (beta): section 3.2 there.
    "learned" is exp(v log beta + (1 - v) log beta tilde) for the network's own v = `Prediction.fraction`: eq. 15 of
    improved DDPM (arXiv:2102.09672). None adds noise on the step that ends at the data.
    """
    if variance not in ("small", "large", "learned"):
        raise UserError(f"sampler ddpm takes variance 'small', 'large' or 'learned'; got {variance!r}")

    def plan(schedule, times):
        t, s = steps_of(schedule, times)
        a, b, small = posterior(s, t)
        stochastic = s.sigma > 0
        if variance == "learned":
            return one_evaluation_a_step(times, (a, b, (*log_variances(schedule.level(times)), stochastic)))
        large = jnp.where(stochastic, transition(s, t)[1], 0.0)
        return one_evaluation_a_step(times, (a, b, jnp.sqrt(small if variance == "small" else large)))

    def update(denoise, x, t, coefficients, noise):
        a, b, std = coefficients
        prediction = denoise(x, t)
        if variance == "learned":
            if prediction.fraction is None:
                raise UserError(
                    "sampler ddpm(variance='learned') needs a network that predicts its variance; "
                    "use variance='small' or 'large'"
                )
            log_small, log_large, stochastic = std
            log_variance = log_small + prediction.fraction * (log_large - log_small)
            std = jnp.where(stochastic, jnp.exp(0.5 * log_variance), 0.0)
        return a * x + b * prediction.x0 + std * noise()

    return Sampler(plan, update)


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM, eq. 12 of Song et al. 2021 (arXiv:2010.02502): eta = 0 is deterministic, eta = 1 is the DDPM posterior.

    First order. In x / alpha as a function of sigma / alpha, eta = 0 is Euler's method.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"sampler ddim takes eta in [0, 1]; got {eta}")
    return _non_markovian(eta, 1.0)


def euler_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> Sampler:
    """Euler's method down to sigma_down, then noise sigma_up up to sigma_s: k-diffusion's sampler of that name.

    sigma_up^2 = eta^2 sigma_s^2 (sigma_t^2 - sigma_s^2) / sigma_t^2 and sigma_down^2 = sigma_s^2 - sigma_up^2 where
    alpha = 1; in x / alpha and sigma / alpha on any schedule. That is DDIM with this eta, and its noise multiplied by
    s_noise.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"sampler euler_ancestral takes eta in [0, 1]; got {eta}")
    return _non_markovian(eta, s_noise)


def _non_markovian(eta: float, s_noise: float) -> Sampler:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + s_noise std z, with std eta times the posterior's."""

    def plan(schedule, times):
        t, s = steps_of(schedule, times)
        std = eta * jnp.sqrt(posterior(s, t)[2])
        return one_evaluation_a_step(times, (s.alpha, jnp.sqrt(jnp.maximum(s.sigma**2 - std**2, 0.0)), s_noise * std))

    def update(denoise, x, t, coefficients, noise):
        alpha, direction, std = coefficients
        prediction = denoise(x, t)
        x = alpha * prediction.x0 + direction * prediction.eps
        return x + std * noise() if eta else x

    return Sampler(plan, update)


def ddim_inversion() -> Sampler:
    """DDIM from data to noise, over times that rise: section 4.3 of Song et al. 2021 (arXiv:2010.02502).

    x_t = (alpha_t / alpha_s) x_s + (sigma_t - sigma_s alpha_t / alpha_s) eps, s < t. eps is the prediction for x_s at
    time t, where the noise that the network was trained on begins, rather than at s, which may be the data itself.
    First order; `ddim` over the same times turned round leads back to first order too. Needs alpha > 0 at every time
    but the last.
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
