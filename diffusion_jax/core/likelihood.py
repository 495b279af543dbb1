"""Exact likelihood by the probability-flow ODE: appendix D.2 of score-SDE (Song et al. 2021, arXiv:2011.13456).

In the variables of `Flow`, dy/dphi = v(y, phi), and log p(y) changes by -div v dphi on the way from data to prior.
The result is the density of x with the noise of the first time. `core.reconstruction` turns it into a bound on the
probability of 8-bit data. So does `dequantize`, for a model that was trained on dequantized data: a model that was
trained on 8-bit data may know that no value lies between two others.
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
"""log2(128): a bin of `dequantize` is 1 / 128 wide, so its probability is the density / 128 in each dimension."""

Divergence = Callable[[Callable[[Array], Array], Array], tuple[Array, Array]]
"""(f, y [B, ...]) -> (f(y), the trace of the Jacobian of f in each example [B])."""

Y = TypeVar("Y")
"""A pytree of arrays that lead with B."""

Solver = Callable[[Field[Y], Y, Array], Y]
"""(field, y at nodes[0], nodes [N + 1]) -> y at nodes[-1]."""

# Runge-Kutta methods in which each stage uses only the stage before: (places of evaluation, weights).
_METHODS = {"heun": ([0, 1], [1 / 2, 1 / 2]), "rk4": ([0, 1 / 2, 1 / 2, 1], [1 / 6, 1 / 3, 1 / 3, 1 / 6])}


def log_likelihood(
    denoise: Denoiser, schedule: Schedule, times: Array, x: Array, divergence: Divergence, solver: Solver
) -> Array:
    """log p(x) in nats [B] of x [B, ...] at time times[0]. The flow ends in N(0, prior_std^2 I) at times[-1] = 1.

    times [N + 1] rises from a time at which there is noise (`rising`), and x is a sample of the marginal at that time.
    divergence is `hutchinson` or `exact_trace`, solver `fixed` or `adaptive`. Raises UserError for times that do not
    rise, or that start at the data.
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
    """The times [steps + 1] from start to 1, evenly spaced in log-SNR.

    sigma_max bounds sigma / alpha at the last time but one. A schedule that ends without signal needs it.
    """
    first, last = schedule.logsnr(jnp.asarray(start, jnp.float32)), schedule.logsnr(jnp.float32(1.0))
    if sigma_max is not None:
        last = jnp.maximum(last, -2 * math.log(sigma_max))
    times = schedule.time(first + (last - first) * jnp.linspace(0.0, 1.0, steps + 1))
    return times.at[0].set(start).at[-1].set(1.0)


def hutchinson(keys: Array, noise: str = "rademacher") -> Divergence:
    """Hutchinson's estimate z^T J z of the trace, with one z an example for the whole path, drawn from keys [B].

    Its mean over z of unit covariance is the trace: eq. 40 of score-SDE. It costs one more forward pass. noise is
    "rademacher" (+-1, which has the smaller variance) or "gaussian"; another one raises UserError.
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
    """The exact divergence, with a forward pass for each dimension of an example: for tiny data.

    f must treat the examples of y [B, ...] independently.
    """
    out, tangent = jax.linearize(f, y)
    basis = jnp.eye(int(np.prod(y.shape[1:])), dtype=y.dtype).reshape(-1, *y.shape[1:])
    diagonal = jax.vmap(lambda e: jnp.sum(e * tangent(jnp.broadcast_to(e, y.shape)), axis=tuple(range(1, y.ndim))))
    return out, jnp.sum(diagonal(basis), axis=0)


def fixed(method: str = "rk4") -> Solver:
    """A solver with one step between neighbouring nodes: Heun's method "heun" (order 2) or Runge-Kutta's "rk4" (4).

    Raises UserError for another method.
    """
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
    """A solver by `dormand_prince` from the first node to the last. Its error control includes the log-density.

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
    """8-bit data x [B, ...] with values u / 127.5 - 1, u = 0 .. 255, as (u + U) / 128 - 1 with U uniform on [0, 1).

    keys [B] are the random keys of the examples.
    """
    u = jnp.round((x + 1) * 127.5)
    noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)
    return (u + noise) / 128 - 1


def bits_per_dim(log_prob: Array, dims: int, offset: float = OFFSET_8_BIT) -> Array:
    """-log2 p / dims + offset, of log_prob [B] in nats and of `dims` dimensions.

    With `OFFSET_8_BIT` and dequantized data it is an upper bound on the bits per value of 8-bit data. The offset of
    continuous data is 0.
    """
    return -log_prob / (dims * np.log(2)) + offset
