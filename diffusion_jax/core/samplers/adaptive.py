"""The probability-flow ODE by an embedded Runge-Kutta pair, which chooses a step size for every example."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.samplers.loop import AdaptiveSampler
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError

Y = TypeVar("Y")
"""A pytree of arrays that lead with B."""

Field = Callable[[Array, Y], Y]
"""(u [B], y) -> dy/du, a pytree like y."""

# Dormand and Prince 1980. Stage i evaluates at u + C_i h, and the last stage is the first of the next step.
_A = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    ]
)
_C = _A.sum(1)
_ERROR = np.array([71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])

_FIRST_STEP = 0.01  # of the interval
_LEAST_LEVEL = 1e-6  # the least alpha and sigma in a log-SNR, as in schedules


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """The probability-flow ODE of a denoiser, for y = x / sqrt(alpha^2 + sigma^2) and phi = arctan(sigma / alpha).

    y = cos(phi) x0 + sin(phi) eps rotates: dy/dphi = cos(phi) eps - sin(phi) x0. Appendix D of progressive distillation
    (arXiv:2202.00512) has it for variance-preserving schedules. It is regular where alpha or sigma is 0, on any
    schedule.
    """

    denoise: Denoiser
    schedule: Schedule

    def angle(self, t: Array) -> Array:
        """phi at times t, elementwise: 0 at the data, at most pi / 2."""
        alpha, sigma = self.schedule.level(t)
        return jnp.arctan2(sigma, alpha)

    def norm(self, t: Array) -> Array:
        """sqrt(alpha^2 + sigma^2) at times t, elementwise."""
        return jnp.hypot(*self.schedule.level(t))

    def __call__(self, phi: Array, y: Array) -> Array:
        """dy/dphi [B, ...] at phi [B] and y [B, ...]."""
        cos, sin = (jnp.maximum(a, _LEAST_LEVEL) for a in (jnp.cos(phi), jnp.sin(phi)))
        t = self.schedule.time(2 * (jnp.log(cos) - jnp.log(sin)))
        alpha, sigma = self.schedule.level(t).like(y)
        norm = jnp.hypot(alpha, sigma)
        prediction = self.denoise(norm * y, t)
        return (alpha * prediction.eps - sigma * prediction.x0) / norm


def ode(rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 1000) -> AdaptiveSampler:
    """The probability-flow ODE by Dormand and Prince's pair of orders 5 and 4: the ODE sampler of score-SDE.

    Appendix D.4 of arXiv:2011.13456, in the variables of `Flow`. Steps end at every time of the grid, so a grid of one
    step constrains them least. From schedule.t_min to the data it takes an Euler step with its last evaluation; where
    the last time before the data is t_min or less, that is the whole last interval. Each example has steps of its own
    and does not depend on the others; a batch takes as long as its slowest example. An example that needs more than
    max_steps steps between two times becomes NaN. Raises UserError unless rtol, atol > 0 and max_steps >= 1.
    """
    if rtol <= 0 or atol <= 0 or max_steps < 1:
        raise UserError(f"sampler ode takes rtol, atol > 0 and max_steps >= 1; got {rtol}, {atol}, {max_steps}")

    def solve(denoise: Denoiser, schedule: Schedule, times: Array, x: Array, trajectory: bool) -> Array:
        flow = Flow(denoise, schedule)
        until = jnp.where(schedule.sigma(times[1:]) > 0, times[1:], jnp.minimum(schedule.t_min, times[:-1]))

        def step(x, inputs):
            start, stop, norm, (alpha, sigma) = inputs
            y, slope = dormand_prince(flow, x / norm, start, stop, rtol=rtol, atol=atol, max_steps=max_steps)
            cos, sin = jnp.cos(stop), jnp.sin(stop)
            x = alpha * (cos * y - sin * slope) + sigma * (sin * y + cos * slope)
            return x, x if trajectory else None

        landing = jax.tree.map(lambda a: a[1:], schedule.level(times))
        inputs = (flow.angle(times[:-1]), flow.angle(until), flow.norm(times[:-1]), landing)
        x, path = jax.lax.scan(step, x, inputs)
        return path if trajectory else x

    return AdaptiveSampler(solve)


def dormand_prince(
    field: Field[Y], y: Y, start: Array, stop: Array, *, rtol: float, atol: float, max_steps: int
) -> tuple[Y, Y]:
    """The solution (y, dy/du) at u = stop that is y at u = start. start and stop are scalars, in either order.

    In each step of an example its error is below 1: the root mean square, over each leaf of y, of the difference of the
    two orders in units of atol + rtol |y|. An example that needs more than max_steps steps becomes NaN.
    """
    length = stop - start
    batch = jax.tree.leaves(y)[0].shape[0]

    def slope(fraction: Array, y: Y) -> Y:
        return field(start + length * fraction, y)

    def like(a: Array, leaf: Array) -> Array:
        return a.reshape(-1, *(1,) * (leaf.ndim - 1))

    def advance(state):
        at, y, first, h, n = state
        done = at >= 1
        last = h >= 1 - at
        taken = jnp.where(done, 0.0, jnp.where(last, 1 - at, h))

        def stage(carry, inputs):
            slopes, _ = carry
            i, c, row = inputs
            inner = jax.tree.map(lambda y, k: y + like(length * taken, y) * jnp.tensordot(row, k, 1), y, slopes)
            new = slope(at + c * taken, inner)
            return (jax.tree.map(lambda k, d: k.at[i].set(d), slopes, new), inner), None

        dtype = at.dtype
        slopes = jax.tree.map(lambda d: jnp.zeros((len(_C), *d.shape), d.dtype).at[0].set(d), first)
        rows = (jnp.arange(1, len(_C)), jnp.asarray(_C[1:], dtype), jnp.asarray(_A[1:], dtype))
        # The last stage is evaluated at the fifth-order solution itself.
        (slopes, proposal), _ = jax.lax.scan(stage, (slopes, y), rows)

        def error(k, old, new):
            scale = atol + rtol * jnp.maximum(jnp.abs(old), jnp.abs(new))
            ratio = like(length * taken, old) * jnp.tensordot(jnp.asarray(_ERROR, dtype), k, 1) / scale
            return jnp.sqrt(jnp.mean(ratio**2, axis=tuple(range(1, ratio.ndim))))

        errors = jnp.stack(jax.tree.leaves(jax.tree.map(error, slopes, y, proposal))).max(0)
        accepted = errors <= 1
        growth = jnp.where(jnp.isfinite(errors), jnp.clip(0.9 * jnp.maximum(errors, 1e-9) ** -0.2, 0.2, 10.0), 0.2)
        choose = lambda new, old: jnp.where(like(accepted, new), new, old)  # noqa: E731
        return (
            jnp.where(accepted, jnp.where(last, 1.0, at + taken), at),
            jax.tree.map(choose, proposal, y),
            jax.tree.map(lambda k, old: choose(k[-1], old), slopes, first),
            jnp.where(done, h, taken * growth),
            n + 1,
        )

    zeros = jnp.zeros(batch, jnp.result_type(length))
    state = (zeros, y, slope(zeros, y), zeros + _FIRST_STEP, 0)
    at, y, last_slope, _, _ = jax.lax.while_loop(lambda s: jnp.any(s[0] < 1) & (s[-1] < max_steps), advance, state)
    y = jax.tree.map(lambda a: jnp.where(like(at >= 1, a), a, jnp.nan), y)
    return y, last_slope
