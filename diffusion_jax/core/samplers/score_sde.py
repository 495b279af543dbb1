"""The predictor-corrector sampler of score-SDE (Song et al. 2021, arXiv:2011.13456)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.process import transition
from diffusion_jax.core.samplers.loop import Noise, Plan, Sampler, steps_of
from diffusion_jax.errors import UserError


class Stage(NamedTuple):
    """The coefficients of one evaluation, of a corrector or of the predictor."""

    number: Array  # int: the correctors from 0, then the predictor
    sigma: Array  # sigma_t
    ratio: Array  # a of q(x_t | x_s) = N(a x_s, v I)
    variance: Array  # v
    std: Array  # sqrt(v), 0 on the step to the data


def predictor_corrector(snr: float = 0.16, correctors: int = 1) -> Sampler:
    """Langevin correctors and the reverse-diffusion predictor: algorithms 2 to 5 of arXiv:2011.13456, on any schedule.

    With q(x_t | x_s) = N(a x_s, v I) and score = -eps / sigma_t, the predictor (eq. 46) is
    x_s = (2 - a) x_t + v score + sqrt(v) z, without z on the step to the data. Before it come the correctors at time t,
    each x + e score + sqrt(2 e) z with e = 2 a^2 (snr |z| / |score|)^2. A step takes 1 + correctors evaluations.

    The paper averages the norms over the batch. Here each example has its own norms, so that no sample depends on
    another. A step size that depends on x biases the variance by a share of up to 2 / D for D dimensions, which is
    negligible for an image. Correctors do not move an example whose score is 0. The predictor adds the noise of the
    whole step, so that too much of it is left after few steps: on EDM's schedule the deviation is twice the data's too
    high at 5 steps and a tenth at 50. Raises UserError unless snr > 0 and correctors >= 0.
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
        coefficients = Stage(jnp.asarray(stage), *(jnp.repeat(c, stages) for c in (t.sigma, a, variance, std)))
        return Plan(coefficients, jnp.repeat(times[:-1], stages), np.repeat(np.arange(steps), stages))

    def update(denoise: Denoiser, x: Array, t: Array, stage: Stage, noise: Noise) -> Array:
        score, z = -denoise(x, t).eps / stage.sigma, noise(stage.number)
        predicted = (2 - stage.ratio) * x + stage.variance * score + stage.std * z
        if not correctors:
            return predicted
        norm = _norm(score)
        e = jnp.where(norm > 0, 2 * (stage.ratio * snr * _norm(z) / jnp.where(norm > 0, norm, 1.0)) ** 2, 0.0)
        return jnp.where(stage.number < correctors, x + e * score + jnp.sqrt(2 * e) * z, predicted)

    return Sampler(plan, update)


def _norm(a: Array) -> Array:
    """The Euclidean norm of each example, [B, 1, ...]."""
    return jnp.sqrt(jnp.sum(a**2, axis=tuple(range(1, a.ndim)), keepdims=True))
