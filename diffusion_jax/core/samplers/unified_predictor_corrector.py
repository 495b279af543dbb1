"""UniPC: a multistep predictor, and a corrector that uses the evaluation of the next step. One evaluation a step."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.samplers.exponential import earlier, log_ratio, moment, orders
from diffusion_jax.core.samplers.loop import Noise, Sampler, one_evaluation_a_step, steps_of
from diffusion_jax.errors import UserError


class Predictor(NamedTuple):
    """The coefficients [N] of a predicted step: x_s = keep x_t + now x0_n + past[0] x0_{n-1} + past[1] x0_{n-2}."""

    keep: Array
    now: Array
    past: tuple[Array, Array]


class Corrector(NamedTuple):
    """The coefficients of a corrected step, by the evaluation x0_s at its end; each [N].

    x_s = keep x_t + new x0_s + past[0] x0_n + past[1] x0_{n-1} + past[2] x0_{n-2}.
    """

    keep: Array
    new: Array
    past: tuple[Array, Array, Array]


class Update(NamedTuple):
    """The coefficients of one evaluation: the correction of the step before it, and the prediction of its own step."""

    corrects: Array  # bool, whether the step before is corrected
    correct: Corrector  # of the step before
    predict: Predictor


Carry = tuple[Array, Array, list[Array]]
"""x, the corrected x from which the last step went, and the predictions x0 of past steps, the newest first."""


def unipc(order: int = 2, variant: str = "bh2", corrector: bool = True, taper: bool = True) -> Sampler:
    """UniPC-p of Zhao et al. 2023 (arXiv:2302.04867, algorithms 1 and 2), data prediction; order p = 1, 2 or 3.

    Predictor and corrector are x_s = (sigma_s / sigma_t) x_t + alpha_s (m_0 x0_t + sum_k c_k (x0_k - x0_t) / r_k),
    r_k = (lambda_k - lambda_t) / h, with a sum over p - 1 past steps. The corrector also uses the evaluation at s
    (r = 1), which gives it order p + 1. A single c is B(h) / 2, where B = h for variant "bh1" and 1 - e^-h for "bh2".
    With taper the last steps are of order 1, 2, ... counted from the end of the grid: `lower_order_final` of the
    authors and of diffusers. A step to the data is always of order 1. Raises UserError for another order or variant.
    """
    if order not in (1, 2, 3) or variant not in ("bh1", "bh2"):
        raise UserError(f"sampler unipc takes order 1, 2 or 3 and variant 'bh1' or 'bh2'; got {order} and {variant!r}")

    def plan(schedule, times):
        t, s = steps_of(schedule, times)
        h = log_ratio(s) - log_ratio(t)
        moments = [moment(k, h) for k in range(4)]
        past = [-earlier(h, 1) / h, -(earlier(h, 1) + earlier(h, 2)) / h]
        n = orders(order, schedule, times, taper=taper)
        half = 0.5 * (h if variant == "bh1" else moments[0])

        def weights(points: list[Array]) -> list[Array]:
            c = [half] if len(points) == 1 else interpolatory(points, moments[1:])
            return [a / r for a, r in zip(c, points, strict=True)]

        one, zero = jnp.ones_like(h), jnp.zeros_like(h)
        predictors = [weights(past[:i]) + [zero] * (2 - i) for i in range(3)]
        correctors = [weights([one, *past[:i]]) + [zero] * (2 - i) for i in range(3)]
        last, older = (jnp.choose(n - 1, jnp.stack(c), mode="clip") for c in zip(*predictors, strict=True))
        new, c_last, c_older = (jnp.choose(n - 1, jnp.stack(c), mode="clip") for c in zip(*correctors, strict=True))
        keep = s.sigma / t.sigma

        predict = Predictor(keep, s.alpha * (moments[0] - last - older), (s.alpha * last, s.alpha * older))
        c_now = s.alpha * (moments[0] - new - c_last - c_older)
        correct = Corrector(keep, s.alpha * new, (c_now, s.alpha * c_last, s.alpha * c_older))
        # Evaluation n corrects step n - 1. There is no such step at n = 0, and no correction of a step from alpha = 0,
        # whose h is inf.
        correct = jax.tree.map(lambda c: jnp.roll(c, 1), correct)
        corrects = (jnp.arange(len(h)) > 0) & jnp.isfinite(earlier(h, 1))
        return one_evaluation_a_step(times, Update(corrects, correct, predict))

    def update(denoise: Denoiser, carry: Carry, t: Array, coefficients: Update, noise: Noise) -> Carry:
        x, start, past = carry
        corrects, correct, predict = coefficients
        x0 = denoise(x, t).x0
        if corrector:
            corrected = correct.keep * start + correct.new * x0 + _dot(correct.past[: len(past)], past)
            x = jnp.where(corrects, corrected, x)
        predicted = predict.keep * x + predict.now * x0 + _dot(predict.past[: order - 1], past)
        return predicted, x, [x0, *past][:order]

    def init(x):
        return x, jnp.zeros_like(x), [jnp.zeros_like(x)] * order

    return Sampler(plan, update, init, finish=lambda carry: carry[0])


def interpolatory(points: list[Array], moments: list[Array]) -> list[Array]:
    """The c_k with sum_k c_k r_k^(i-1) = moments[i - 1] for i = 1 .. len(points), by Lagrange's polynomials.

    points are the r_k; they and the moments are [N], and so is each c_k.
    """
    weights = []
    for k, r in enumerate(points):
        others = points[:k] + points[k + 1 :]
        polynomial, scale = [jnp.ones_like(r)], jnp.ones_like(r)  # of v, constant term first
        for other in others:
            zero = jnp.zeros_like(r)
            polynomial = [a - other * b for a, b in zip([zero, *polynomial], [*polynomial, zero], strict=True)]
            scale = scale * (r - other)
        weights.append(sum(p * m for p, m in zip(polynomial, moments, strict=False)) / scale)
    return weights


def _dot(weights: Sequence[Array], arrays: Sequence[Array]) -> Array | float:
    return sum((w * a for w, a in zip(weights, arrays, strict=False)), start=0.0)
