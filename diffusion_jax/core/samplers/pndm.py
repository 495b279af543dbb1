"""PLMS: a linear multistep method on eps in DDIM's step. One network evaluation a step, and one more at the start."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.samplers.loop import Noise, Plan, Sampler, ends_at_data, steps_of
from diffusion_jax.core.samplers.trapezoid import trapezoidal_weight
from diffusion_jax.core.schedules import Level

_ADAMS_BASHFORTH = np.array([[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55, -59, 37, -9]])
_ADAMS_BASHFORTH[3] /= 24


class Evaluation(NamedTuple):
    """The coefficients of one evaluation: x <- stay x + alpha x0 + sigma eps + sum_k weights[k] eps_k.

    eps_0 is this evaluation's eps, and eps_1, ... are those remembered of the steps before.
    """

    is_new: Array  # bool, whether eps is remembered as a step's
    stay: Array
    level: Level
    weights: Array  # [4]


Carry = tuple[Array, list[Array]]
"""x, and eps of the last three steps, the newest first."""


def plms() -> Sampler:
    """The linear multistep form of PNDM (arXiv:2202.09778, eq. 11 to 14), which Stable Diffusion calls PLMS.

    x_s = (alpha_s / alpha_t) x_t + (sigma_s - sigma_t alpha_s / alpha_t) eps', where eps' is the Adams-Bashforth
    combination of the last four eps. An improved Euler step starts it. The weights are those of steps that are equal in
    sigma / alpha; on other grids it is of second order.
    """

    def plan(schedule, times):
        t, s = steps_of(schedule, times)
        steps = len(times) - 1
        change = jnp.where(t.alpha > 0, s.sigma - t.sigma * s.alpha / t.alpha, 0.0)
        weights = jnp.asarray(_ADAMS_BASHFORTH[np.minimum(np.arange(steps), 3)], change.dtype)
        # As x_s = alpha_s x0 + sigma_s eps + change (eps' - eps), which divides by no alpha that may be 0.
        weights = change[:, None] * weights.at[:, 0].add(-1.0)
        is_new, stay = jnp.ones(steps, bool), jnp.zeros_like(change)
        if steps == 1 and ends_at_data(schedule, times):
            return Plan(Evaluation(is_new, stay, s, weights), times[:-1], np.arange(1))
        # The second evaluation, at the end of the first Euler step, turns that step into a trapezoidal one.
        improve = trapezoidal_weight(t, s, above=10.0)[0] * jnp.array([1.0, -1.0, 0.0, 0.0], change.dtype)
        insert = lambda a, value: jnp.insert(a, 1, value, axis=0)  # noqa: E731
        return Plan(
            Evaluation(
                insert(is_new, False),
                insert(stay, 1.0),
                jax.tree.map(lambda a: insert(a, 0.0), s),
                insert(weights, improve),
            ),
            insert(times[:-1], times[1]),
            np.insert(np.arange(steps), 1, 0),
        )

    def update(denoise: Denoiser, carry: Carry, t: Array, evaluation: Evaluation, noise: Noise) -> Carry:
        x, past = carry
        prediction = denoise(x, t)
        eps = [prediction.eps, *past]
        level = evaluation.level
        x = evaluation.stay * x + level.alpha * prediction.x0 + level.sigma * prediction.eps
        x = x + sum(w * e for w, e in zip(evaluation.weights, eps, strict=True))
        return x, [jnp.where(evaluation.is_new, new, old) for new, old in zip(eps, past, strict=False)]

    return Sampler(plan, update, init=lambda x: (x, [jnp.zeros_like(x)] * 3), finish=lambda carry: carry[0])
