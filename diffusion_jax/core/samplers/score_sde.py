"""The predictor-corrector sampler of score-SDE (Song et al. 2021, arXiv:2011.13456)."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.process import transition
from diffusion_jax.core.samplers.loop import Plan, Sampler, steps_of
from diffusion_jax.errors import UserError


def predictor_corrector(snr: float = 0.16, correctors: int = 1) -> Sampler:
    """Langevin correctors and the reverse-diffusion predictor; algorithms 2 to 5 of arXiv:2011.13456, any schedule.

    With q(x_t | x_s) = N(a x_s, v I) and score = -eps / sigma_t, the predictor (eq. 46) is
    x_s = (2 - a) x_t + v score + sqrt(v) z, without z on the step to the data. Before it, at time t, each corrector is
    x + e score + sqrt(2 e) z with e = 2 a^2 (snr |z| / |score|)^2. Every step takes 1 + correctors evaluations.
    The paper averages the norms over the batch; here each example has its own, so that none depends on another. A step
    size that depends on x biases the variance by up to 2 / D of it for D dimensions: nothing to an image. An example
    whose score is 0 takes no corrector's step. A predictor's step adds the noise of the whole step, so few steps leave
    too much of it: of EDM's schedule, twice the data's deviation too much at 5 steps, a tenth at 50.
    """
    if snr <= 0 or correctors < 0:
        raise UserError(
            f"sampler predictor_corrector takes snr > 0 and correctors >= 0; got snr={snr} and correctors={correctors}"
        )
    stages = 1 + correctors

    def plan(schedule, times):
        t, s = steps_of(schedule, times)
        a, variance = transition(s, t)
        std = jnp.where(s.sigma > 0, jnp.sqrt(variance), 0.0)
        steps = len(times) - 1
        stage = np.tile(np.arange(stages), steps)
        coefficients = tuple(jnp.repeat(c, stages) for c in (t.sigma, a, variance, std))
        return Plan(
            (jnp.asarray(stage), *coefficients), jnp.repeat(times[:-1], stages), np.repeat(np.arange(steps), stages)
        )

    def update(denoise, x, t, coefficients, noise):
        stage, sigma, a, variance, std = coefficients
        score, z = -denoise(x, t).eps / sigma, noise(stage)
        predicted = (2 - a) * x + variance * score + std * z
        if not correctors:
            return predicted
        norm = _norm(score)
        e = jnp.where(norm > 0, 2 * (a * snr * _norm(z) / jnp.where(norm > 0, norm, 1.0)) ** 2, 0.0)
        return jnp.where(stage < correctors, x + e * score + jnp.sqrt(2 * e) * z, predicted)

    return Sampler(plan, update)


def _norm(a: Array) -> Array:
    """Euclidean norm of each example, [B, 1, ...]."""
    return jnp.sqrt(jnp.sum(a**2, axis=tuple(range(1, a.ndim)), keepdims=True))
