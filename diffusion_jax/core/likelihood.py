"""Exact likelihood by the probability-flow ODE: appendix D.2 of score-SDE (Song et al. 2021, arXiv:2011.13456).

In the variables of `Flow`, dy/dphi = v(y, phi), and log p(y) changes by -div v dphi on the way from data to prior.
It is the density of x with the noise of the first time. A bound on the probability of 8-bit data comes of it by
`reconstruction`, or by `dequantize` for a model that was trained on data dequantized so: a model of 8-bit data itself
may know that no value lies between two others.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.samplers.adaptive import Field, Flow, dormand_prince
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError

OFFSET_8_BIT = 7.0
"""log2(128): a bin of `dequantize` is 1 / 128 wide, so that its probability is density / 128 in each dimension."""

Divergence = Callable[[Callable[[Array], Array], Array], tuple[Array, Array]]
"""(f, y [B, ...]) -> f(y) and the trace of its Jacobian in each example [B]."""

Y = TypeVar("Y")
"""A pytree of arrays that lead with B."""

Solver = Callable[[Field[Y], Y, Array], Y]
"""(field, y at nodes[0], nodes [N + 1]) -> y at nodes[-1]."""

# Runge-Kutta methods of which each stage uses the one before alone: (where it evaluates, its weight).
_METHODS = {"heun": ([0, 1], [1 / 2, 1 / 2]), "rk4": ([0, 1 / 2, 1 / 2, 1], [1 / 6, 1 / 3, 1 / 3, 1 / 6])}


def log_likelihood(
    denoise: Denoiser, schedule: Schedule, times: Array, x: Array, divergence: Divergence, solver: Solver
) -> Array:
    """log p(x) in nats [B] of x [B, ...] at times[0], whose flow ends in N(0, prior_std^2 I) at times[-1] = 1.

    times [N + 1] rises from a time at which there is noise, as `rising` does; x is taken for a sample of that time's
    marginal.
    """
    noiseless = 0.0 if schedule.t_min else -1.0  # a learned schedule has noise at t = 0
    if not isinstance(times, jax.core.Tracer) and (np.any(np.diff(times) <= 0) or times[0] <= noiseless):
        raise UserError("the likelihood's times rise from a time greater than 0; turn the time grid round")
    times = jnp.asarray(times, jnp.promote_types(x.dtype, jnp.float32))
    flow = Flow(denoise, schedule)
    dims = int(np.prod(x.shape[1:]))

    def field(phi: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        return divergence(lambda y: flow(phi, y), state[0])

    first, last = flow.norm(times[0]), flow.norm(times[-1])
    y, gained = solver(field, (x / first, jnp.zeros(x.shape[0], x.dtype)), flow.angle(times))
    square = jnp.sum((last * y / schedule.prior_std) ** 2, axis=tuple(range(1, x.ndim)))
    log_prior = -0.5 * (square + dims * jnp.log(2 * jnp.pi * schedule.prior_std**2))
    return log_prior + gained + dims * (jnp.log(last) - jnp.log(first))


def rising(schedule: Schedule, start: float | Array, steps: int, sigma_max: float | None = None) -> Array:
    """steps + 1 times from start to 1, evenly spaced in log-SNR.

    The last but one is no later than sigma / alpha = sigma_max, which a schedule needs that ends without signal.
    """
    first, last = schedule.logsnr(jnp.asarray(start, jnp.float32)), schedule.logsnr(jnp.float32(1.0))
    if sigma_max is not None:
        last = jnp.maximum(last, -2 * math.log(sigma_max))
    times = schedule.time(first + (last - first) * jnp.linspace(0.0, 1.0, steps + 1))
    return times.at[0].set(start).at[-1].set(1.0)


def hutchinson(keys: Array, noise: str = "rademacher") -> Divergence:
    """z^T J z, whose mean over z of unit covariance is the trace; one z for the whole path, drawn from keys [B].

    noise "rademacher" (+-1, the smaller variance) or "gaussian"; appendix D.2 and its eq. 40. One more forward
    pass.
    """
    draws = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}
    if noise not in draws:
        raise UserError(f"the Hutchinson trace takes noise 'rademacher' or 'gaussian'; got {noise!r}")

    def divergence(f: Callable[[Array], Array], y: Array) -> tuple[Array, Array]:
        z = jax.vmap(lambda key: draws[noise](key, y.shape[1:], y.dtype))(keys)
        out, tangent = jax.jvp(f, (y,), (z,))
        return out, jnp.sum(z * tangent, axis=tuple(range(1, y.ndim)))

    return divergence


def exact_trace(f: Callable[[Array], Array], y: Array) -> tuple[Array, Array]:
    """The divergence by one forward pass for each dimension: for tiny data. Examples must not mix in f."""
    out, tangent = jax.linearize(f, y)
    basis = jnp.eye(int(np.prod(y.shape[1:])), dtype=y.dtype).reshape(-1, *y.shape[1:])
    diagonal = jax.vmap(lambda e: jnp.sum(e * tangent(jnp.broadcast_to(e, y.shape)), axis=tuple(range(1, y.ndim))))
    return out, jnp.sum(diagonal(basis), axis=0)


def fixed(method: str = "rk4") -> Solver:
    """One step between neighbouring nodes, of Heun's method (order 2) or the classical Runge-Kutta method (4)."""
    if method not in _METHODS:
        raise UserError(f"the fixed-step likelihood takes method {' or '.join(map(repr, _METHODS))}; got {method!r}")

    def solve(field: Field[Y], y: Y, nodes: Array) -> Y:
        positions, weights = (jnp.asarray(a, nodes.dtype) for a in _METHODS[method])
        batch = jax.tree.leaves(y)[0].shape[0]

        def step(y, ends):
            start, length = ends[0], ends[1] - ends[0]

            def stage(carry, inputs):
                slope, total = carry
                position, weight = inputs
                inner = jax.tree.map(lambda y, k: y + position * length * k, y, slope)
                slope = field(jnp.full(batch, start + position * length), inner)
                return (slope, jax.tree.map(lambda s, k: s + weight * k, total, slope)), None

            zeros = jax.tree.map(jnp.zeros_like, y)
            (_, total), _ = jax.lax.scan(stage, (zeros, zeros), (positions, weights))
            return jax.tree.map(lambda y, k: y + length * k, y, total), None

        return jax.lax.scan(step, y, jnp.stack([nodes[:-1], nodes[1:]], axis=1))[0]

    return solve


def adaptive(rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 1000) -> Solver:
    """`dormand_prince` from the first node to the last, the log-density under its error control too.

    Raises UserError unless rtol and atol are above 0 and max_steps is at least 1.
    """
    if rtol <= 0 or atol <= 0 or max_steps < 1:
        raise UserError(
            f"the adaptive likelihood takes rtol, atol > 0 and max_steps >= 1; got {rtol}, {atol}, {max_steps}"
        )

    def solve(field: Field[Y], y: Y, nodes: Array) -> Y:
        return dormand_prince(field, y, nodes[0], nodes[-1], rtol=rtol, atol=atol, max_steps=max_steps)[0]

    return solve


def dequantize(x: Array, keys: Array) -> Array:
    """8-bit data in [-1, 1], level u of 0 .. 255 at u / 127.5 - 1, to (u + U) / 128 - 1, U uniform on [0, 1)."""
    u = jnp.round((x + 1) * 127.5)
    noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)
    return (u + noise) / 128 - 1


def bits_per_dim(log_prob: Array, dims: int, offset: float = OFFSET_8_BIT) -> Array:
    """-log2 p / dims + offset for log_prob in nats: with dequantised 8-bit data an upper bound on its bits per value.

    The offset of continuous data is 0.
    """
    return -log_prob / (dims * np.log(2)) + offset
