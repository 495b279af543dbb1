"""UniPC: a multistep predictor, and a corrector that reuses the evaluation of the next step; one evaluation a step."""

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.samplers.exponential import earlier, log_ratio, moment, orders
from diffusion_jax.core.samplers.loop import Sampler, one_evaluation_a_step, steps_of
from diffusion_jax.errors import UserError


def unipc(order: int = 2, variant: str = "bh2", corrector: bool = True, taper: bool = True) -> Sampler:
    """UniPC-p of Zhao et al. 2023 (arXiv:2302.04867, algorithms 1 and 2), data prediction; order p = 1, 2 or 3.

    Predictor and corrector are x_s = (sigma_s / sigma_t) x_t + alpha_s (m_0 x0_t + sum_k c_k (x0_k - x0_t) / r_k),
    r_k = (lambda_k - lambda_t) / h, over p - 1 past steps; the corrector takes the evaluation at s (r = 1) as well and
    so has one order more, p + 1. Where a single c is left, it is B(h) / 2: B = h for variant "bh1", 1 - e^-h for
    "bh2". With taper the last steps are of order 1, 2, ... counted from the end, wherever that is: `lower_order_final`
    of its authors and diffusers. A step to the data is of order 1 in any case.
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

        predict = (keep, s.alpha * (moments[0] - last - older), s.alpha * last, s.alpha * older)
        correct = (
            keep,
            s.alpha * new,
            s.alpha * (moments[0] - new - c_last - c_older),
            s.alpha * c_last,
            s.alpha * c_older,
        )
        # The corrector that runs after evaluation n corrects step n - 1: there is none at n = 0, and none at n = 1
        # where alpha = 0 at the start, for that h is inf.
        correct = jax.tree.map(lambda c: jnp.roll(c, 1), correct)
        corrects = (jnp.arange(len(h)) > 0) & jnp.isfinite(earlier(h, 1))
        return one_evaluation_a_step(times, (corrects, correct, predict))

    def update(denoise, carry, t, coefficients, noise):
        x, start, past = carry  # start: x where the last step started, corrected
        corrects, (c_keep, c_new, *c_past), (keep, now, *before) = coefficients
        x0 = denoise(x, t).x0
        if corrector:
            corrected = c_keep * start + c_new * x0 + _dot(c_past[: len(past)], past)
            x = jnp.where(corrects, corrected, x)
        return keep * x + now * x0 + _dot(before[: order - 1], past), x, [x0, *past][:order]

    def init(x):
        return x, jnp.zeros_like(x), [jnp.zeros_like(x)] * order

    return Sampler(plan, update, init, finish=lambda carry: carry[0])


def interpolatory(points: list[Array], moments: list[Array]) -> list[Array]:
    """c_k with sum_k c_k r_k^(i-1) = moments[i - 1] for i = 1 .. len(points): by Lagrange's polynomials."""
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


def _dot(weights: list[Array], arrays: list[Array]) -> Array | float:
    return sum((w * a for w, a in zip(weights, arrays, strict=False)), start=0.0)
