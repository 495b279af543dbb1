"""PLMS: linear multistep on eps, carried by DDIM's step; one network evaluation a step and one more at the start."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.samplers.loop import Plan, Sampler, ends_at_data, steps_of
from diffusion_jax.core.samplers.trapezoid import trapezoidal_weight

_ADAMS_BASHFORTH = np.array([[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55, -59, 37, -9]])
_ADAMS_BASHFORTH[3] /= 24


def plms() -> Sampler:
    """The linear multistep form of PNDM (arXiv:2202.09778, eq. 11 to 14) that Stable Diffusion calls PLMS.

    x_s = (alpha_s / alpha_t) x_t + (sigma_s - sigma_t alpha_s / alpha_t) eps' with eps' the Adams-Bashforth combination
    of the last four eps, started by an improved Euler step. Its weights take the steps for equal in sigma / alpha:
    second order where they are not.
    """

    def plan(schedule, times):
        t, s = steps_of(schedule, times)
        steps = len(times) - 1
        change = jnp.where(t.alpha > 0, s.sigma - t.sigma * s.alpha / t.alpha, 0.0)
        weights = jnp.asarray(_ADAMS_BASHFORTH[np.minimum(np.arange(steps), 3)], change.dtype)
        # x_s = alpha_s x0 + sigma_s eps + change (eps' - eps): no division by an alpha that may be 0.
        weights = change[:, None] * weights.at[:, 0].add(-1.0)
        is_new, stay = jnp.ones(steps, bool), jnp.zeros_like(change)
        if steps == 1 and ends_at_data(schedule, times):
            return Plan((is_new, stay, s, weights), times[:-1], np.arange(1))
        # The second evaluation belongs to the first step: it sees where Euler's led and makes it a trapezoidal one.
        improve = trapezoidal_weight(t, s, above=10.0)[0] * jnp.array([1.0, -1.0, 0.0, 0.0], change.dtype)
        insert = lambda a, value: jnp.insert(a, 1, value, axis=0)  # noqa: E731
        return Plan(
            (
                insert(is_new, False),
                insert(stay, 1.0),
                jax.tree.map(lambda a: insert(a, 0.0), s),
                insert(weights, improve),
            ),
            insert(times[:-1], times[1]),
            np.insert(np.arange(steps), 1, 0),
        )

    def update(denoise, carry, t, coefficients, noise):
        x, past = carry
        is_new, stay, level, weights = coefficients
        prediction = denoise(x, t)
        eps = [prediction.eps, *past]
        x = stay * x + level.alpha * prediction.x0 + level.sigma * prediction.eps
        x = x + sum(w * e for w, e in zip(weights, eps, strict=True))
        return x, [jnp.where(is_new, new, old) for new, old in zip(eps, past, strict=False)]

    return Sampler(plan, update, init=lambda x: (x, [jnp.zeros_like(x)] * 3), finish=lambda carry: carry[0])
