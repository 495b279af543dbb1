"""Averages of the parameters over training: exponential ones, and the power-function profiles of EDM2.

A profile of exponent gamma weights the parameters after step tau, of t steps, by
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), 0 < tau <= t: section 3.1 of arXiv:2312.02696. Users give its length
sigma_rel, the standard deviation of tau / t under p.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError
from diffusion_jax.train.state import Params

LONGEST = 12**-0.5
"""sigma_rel at gamma = 0, where all steps weigh the same. A longer profile would weigh early steps more than late."""


def decay_at(step: Array, decay: float, warmup: bool) -> Array:
    """The decay of the average after `step` steps s: `decay` or, with warm-up, min(decay, (1 + s) / (10 + s)).

    Without warm-up, an average of decay 0.9999 is still mostly the random initialization after 10,000 steps.
    """
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else jnp.float32(decay)


def update(ema: Params, params: Params, decay: Array) -> Params:
    """The tree decay * ema + (1 - decay) * params. Where both are equal, the result equals them to the last bit."""
    return jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema, params)


def power_decay(step: Array, gamma: float) -> Array:
    """The decay of a profile after `step` steps: beta = (1 - 1 / t)^(gamma + 1) with t = step + 1, and 0 for t = 1.

    The average then weights step tau by the integral of p from tau - 1 to tau, exactly.
    """
    t = step.astype(jnp.float32) + 1.0
    return jnp.where(t > 1.0, jnp.exp((gamma + 1.0) * jnp.log1p(-1.0 / jnp.maximum(t, 2.0))), 0.0)


def sigma_rel(gamma: ArrayLike) -> np.ndarray:
    """The length sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))) of profiles gamma, elementwise in float64."""
    g = np.asarray(gamma, np.float64)
    return np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3)))


def gamma_of(sigma: float) -> float:
    """The exponent of a profile of length sigma: the largest root of g^3 + 7 g^2 + (16 - s) g + 12 - s, s = sigma^-2.

    Raises UserError unless 0 < sigma_rel <= 12^-1/2, which is about 0.288.
    """
    if not 0 < sigma <= LONGEST + 1e-9:
        raise UserError(f"the length of an average, sigma_rel, is above 0 and at most {LONGEST:.4g}; got {sigma:g}")
    s = float(sigma) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - s, 12.0 - s])
    return max(float(roots.real.max()), 0.0)


def overlap(gamma_a: ArrayLike, t_a: ArrayLike, gamma_b: ArrayLike, t_b: ArrayLike) -> np.ndarray:
    """The integral of p_a p_b over tau, in float64, for profiles a and b after t_a and t_b steps. Arguments broadcast.

    It is (a + 1)(b + 1) / (a + b + 1) m^(a + b + 1) / (t_a^(a + 1) t_b^(b + 1)) with m = min(t_a, t_b).
    """
    a, s, b, t = (np.asarray(x, np.float64) for x in (gamma_a, t_a, gamma_b, t_b))
    m = np.minimum(s, t)
    # Logarithms, for the powers by themselves overflow.
    powers = np.exp((a + 1) * np.log(m / s) + (b + 1) * np.log(m / t)) / m
    return (a + 1) * (b + 1) / (a + b + 1) * powers


def reconstruction(gammas: ArrayLike, ends: ArrayLike, gamma: float, end: float) -> tuple[np.ndarray, float]:
    """The weights [n] of n snapshots that sum to the profile gamma after `end` steps, and their relative error.

    Snapshot i is the profile gammas[i] after ends[i] steps. The weights x minimize |p - sum x_i p_i| and sum to 1, so
    that constant parameters are reproduced; the error is the minimum over |p|. Section 3.2 of arXiv:2312.02696.
    """
    a, t = np.asarray(gammas, np.float64), np.asarray(ends, np.float64)
    gram = overlap(a[:, None], t[:, None], a, t)  # [n, n]
    wanted = overlap(a, t, gamma, end)  # [n]
    norm = float(overlap(gamma, end, gamma, end))
    scale = 1 / np.sqrt(np.diag(gram))  # profiles of early snapshots are narrow and high
    system = np.zeros((len(a) + 1, len(a) + 1))
    system[:-1, :-1] = gram * scale[:, None] * scale
    system[:-1, -1] = system[-1, :-1] = scale / scale.max()
    right = np.append(wanted * scale, 1 / scale.max())
    x = np.linalg.lstsq(system, right, rcond=1e-13)[0][:-1] * scale
    square = norm - 2 * x @ wanted + x @ gram @ x
    return x, float(np.sqrt(max(square, 0.0) / norm))
