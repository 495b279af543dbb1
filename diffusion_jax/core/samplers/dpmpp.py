"""DPM-Solver++ as multistep methods, and their SDE forms: one network evaluation a step."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.samplers.exponential import earlier, log_ratio, moment, orders
from diffusion_jax.core.samplers.loop import Noise, Sampler, one_evaluation_a_step, steps_of
from diffusion_jax.errors import UserError


class MultistepStep(NamedTuple):
    """The coefficients of a step: x_s = keep x_t + sum_k weights[k] x0_{n - k} + std z; every array is [N]."""

    keep: Array
    weights: list[Array]  # of the predictions x0 of this step and of the steps before it, the newest first
    std: Array | None  # None for a deterministic sampler


Carry = tuple[Array, list[Array]]
"""x, and the predictions x0 of the steps before, the newest first."""


def dpmpp_2m(eta: float = 0.0, solver: str = "midpoint", s_noise: float = 1.0) -> Sampler:
    """DPM-Solver++(2M), algorithm 2 of arXiv:2211.01095; with eta > 0 an SDE form. Second order where eta = 0.

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s (m_0 D_0 + m_1 D_1) + sigma_s sqrt(1 - e^(-2 eta h)) z, where
    D_0 = x0_n, D_1 = (x0_n - x0_{n-1}) h / h_{n-1} and m_0 = 1 - e^-((1 + eta) h). eta = 1 is the paper's
    SDE-DPM-Solver++(2M). solver "midpoint" has m_1 = m_0 / 2, as the paper, and "heun" the exact integral. s_noise
    multiplies the noise z. Raises UserError for another solver and unless eta is in [0, 1].
    """
    if solver not in ("midpoint", "heun"):
        raise UserError(f"sampler dpmpp_2m takes solver 'midpoint' or 'heun'; got {solver!r}")
    return _multistep("dpmpp_2m", 2, eta, s_noise, midpoint=solver == "midpoint", curvature=1.0)


def dpmpp_3m(eta: float = 0.0, reference: bool = False, s_noise: float = 1.0) -> Sampler:
    """DPM-Solver++ with x0 interpolated by a parabola through three steps, third order; with eta > 0 its SDE form.

    It is `dpmpp_2m` plus alpha_s m_2 D_2, with the second divided difference D_2 and the weight m_2 = 2 h phi_3(-h),
    which is exact for a parabola. diffusers and k-diffusion take half of this weight, which gives second order;
    reference=True follows them. (The single-step code of the paper's authors has the 2.) The first two steps are of
    lower order, which does not matter where sampling starts from noise: x0 hardly changes there. eta and s_noise as in
    `dpmpp_2m`.
    """
    return _multistep("dpmpp_3m", 3, eta, s_noise, midpoint=False, curvature=0.5 if reference else 1.0)


def dpmpp_2m_sde(eta: float = 1.0, solver: str = "midpoint", s_noise: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M), section 5 of arXiv:2211.01095: `dpmpp_2m` with noise, eta = 1."""
    return dpmpp_2m(eta, solver, s_noise)


def dpmpp_3m_sde(eta: float = 1.0, reference: bool = False, s_noise: float = 1.0) -> Sampler:
    """`dpmpp_3m` with noise, eta = 1; with reference=True it is k-diffusion's sampler of that name."""
    return dpmpp_3m(eta, reference, s_noise)


def _multistep(name: str, order: int, eta: float, s_noise: float, *, midpoint: bool, curvature: float) -> Sampler:
    """The multistep method of this order; midpoint takes m_1 = m_0 / 2, and curvature multiplies m_2."""
    if not 0 <= eta <= 1:
        raise UserError(f"sampler {name} takes eta in [0, 1]; got {eta}")

    def plan(schedule, times):
        t, s = steps_of(schedule, times)
        h = log_ratio(s) - log_ratio(t)
        r0, r1 = earlier(h, 1) / h, earlier(h, 2) / h
        m0, m1, m2 = (moment(k, (1 + eta) * h) for k in range(3))
        m1, m2 = 0.5 * m0 if midpoint else m1, curvature * m2
        # The weights of the divided differences D1_0 (n, n - 1) and D1_1 (n - 1, n - 2), of which the paper's are
        # D1 = D1_0 + r0 D2 and D2 = (D1_0 - D1_1) / (r0 + r1).
        second = jnp.stack([m1, jnp.zeros_like(h)])
        third = jnp.stack([m1 + (m1 * r0 + m2) / (r0 + r1), -(m1 * r0 + m2) / (r0 + r1)])
        n = orders(order, schedule, times)
        d0, d1 = jnp.where(n == 1, 0.0, jnp.where(n == 2, second, third))
        d0, d1 = jnp.where(n == 1, 0.0, d0 / r0), jnp.where(n < 3, 0.0, d1 / r1)
        decay = jnp.exp(-eta * h) if eta else 1.0  # without eta: 0 times an infinite h on the last step
        std = s_noise * s.sigma * jnp.sqrt(-jnp.expm1(-2 * eta * h)) if eta else None
        weights = [s.alpha * w for w in (m0 + d0, d1 - d0, -d1)[:order]]
        return one_evaluation_a_step(times, MultistepStep(s.sigma / t.sigma * decay, weights, std))

    def update(denoise: Denoiser, carry: Carry, t: Array, step: MultistepStep, noise: Noise) -> Carry:
        x, past = carry
        x0 = [denoise(x, t).x0, *past]
        x = step.keep * x + sum(w * d for w, d in zip(step.weights, x0, strict=True))
        return (x + step.std * noise() if step.std is not None else x), x0[:-1]

    return Sampler(plan, update, init=lambda x: (x, [jnp.zeros_like(x)] * (order - 1)), finish=lambda carry: carry[0])
