"""The loop of all samplers: one `lax.scan` with a network evaluation an iteration. Sample i depends on seed i alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.core.arguments import check_one_each
from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.schedules import Level, Schedule
from diffusion_jax.errors import UserError

Times = Array | np.ndarray
"""A time grid [N + 1]. Where its numbers are known as the program is traced, as those of a numpy array are, a sampler
knows whether the grid ends at the data."""

Noise = Callable[..., Array]
"""noise(draw=0): standard normal noise of x's shape, with an independent draw for each number.

It depends on the example's key, the step and the number alone. A deterministic sampler does not call it.
"""

Coefficients = Any
"""The coefficients of an evaluation: a pytree of arrays, of a sampler's own type."""

Carry = Any
"""What a sampler carries from one evaluation to the next: a pytree of arrays that lead with B, of its own type."""


class Plan(NamedTuple):
    """The E >= N evaluations that integrate a grid of N steps, in order. Every array leads with E."""

    coefficients: Coefficients
    """The coefficients of each evaluation."""
    t: Array
    """[E] the time at which the denoiser is called."""
    step: np.ndarray
    """[E] the step to which each evaluation belongs, rising from 0 to N - 1."""


class Sampler(NamedTuple):
    """A numerical method for the reverse process, as four pure functions.

    `plan` computes, before the scan, which evaluations there are and the coefficients of all of them. `update` calls
    the denoiser once and advances the carry. `init` makes the first carry of x at the start, and `finish` gives x back;
    by default the carry is x itself.
    """

    plan: Callable[[Schedule, Array], Plan]
    """(schedule, times [N + 1]) -> the evaluations."""
    update: Callable[[Denoiser, Carry, Array, Coefficients, Noise], Carry]
    """(denoise, carry, t [B], coefficients of this evaluation, noise) -> the next carry."""
    init: Callable[[Array], Carry] = lambda x: x
    """x [B, ...] -> the carry."""
    finish: Callable[[Carry], Array] = lambda carry: carry
    """carry -> x [B, ...]."""


class AdaptiveSampler(NamedTuple):
    """A method that calls the denoiser as often as each example needs."""

    solve: Callable[[Denoiser, Schedule, Array, Array, bool], Array]
    """(denoise, schedule, times [N + 1], x, trajectory) -> x at times[-1], or with trajectory at times[1:]:
    [N, B, ...]."""


def one_evaluation_a_step(times: Array, coefficients: Coefficients) -> Plan:
    """The plan of a method with one evaluation a step, at times[n]. The arrays of coefficients lead with N."""
    return Plan(coefficients, times[:-1], np.arange(len(times) - 1))


def two_evaluations_a_step(
    times: Array, t: tuple[Array, Array], coefficients: tuple[Coefficients, Coefficients], *, last: int
) -> Plan:
    """The plan of a method with two stages a step, and `last` (1 or 2) stages on the last step.

    t and coefficients are those of the first and of the second stage, whose arrays lead with N.
    """

    def interleave(first: Array, second: Array) -> Array:
        return jnp.stack([first, second], axis=1).reshape(-1)[:count]

    steps = len(times) - 1
    count = 2 * (steps - 1) + last
    return Plan(jax.tree.map(interleave, *coefficients), interleave(*t), np.repeat(np.arange(steps), 2)[:count])


def steps_of(schedule: Schedule, times: Array) -> tuple[Level, Level]:
    """The levels at which the N steps begin (t) and end (s), each [N]."""
    levels = schedule.level(times)
    return jax.tree.map(lambda a: a[:-1], levels), jax.tree.map(lambda a: a[1:], levels)


def ends_at_data(schedule: Schedule, times: Array) -> bool:
    """Whether sigma is 0 at the last time; True where it is not known as the program is traced."""
    with jax.ensure_compile_time_eval():
        sigma = schedule.sigma(times[-1])
    return not is_concrete(sigma) or float(sigma) == 0


def is_concrete(a: Array) -> bool:
    """Whether the values of a are known as the program is traced."""
    return not isinstance(a, jax.core.Tracer)


def evaluations(sampler: Sampler | AdaptiveSampler, schedule: Schedule, times: Times) -> int | None:
    """The number of calls of the denoiser over times (NFE); None for an adaptive sampler, whose calls depend on x."""
    if isinstance(sampler, AdaptiveSampler):
        return None
    return len(sampler.plan(schedule, _as_times(times, jnp.float32)).step)


def standard_normal(keys: Array, step: Array | int, draw: Array | int, like: Array) -> Array:
    """Standard normal noise of like's shape [B, ...]. That of example i depends on keys[i], step and draw alone."""

    def one(key: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(key, step), draw)
        return jax.random.normal(key, like.shape[1:], like.dtype)

    return jax.vmap(one)(keys)


def integrate(
    denoise: Denoiser,
    sampler: Sampler | AdaptiveSampler,
    schedule: Schedule,
    times: Times,
    x: Array,
    keys: Array,
    *,
    trajectory: bool = False,
) -> Array:
    """Integrates x [B, ...] from times[0] to times[-1] with the sampler.

    times [N + 1] falls, but for an inversion. keys [B] are the random keys of the examples: the noise of example i
    depends on keys[i] and the step alone. Returns x at the end or, with trajectory, at every time: [N + 1, B, ...].
    Raises UserError for a grid of fewer than 2 times, and for a step of length 0.
    """
    check_one_each(x, keys=keys)
    times = _as_times(times, x.dtype)
    if isinstance(sampler, AdaptiveSampler):
        out = sampler.solve(denoise, schedule, times, x, trajectory)
        return jnp.concatenate([x[None], out]) if trajectory else out
    plan = sampler.plan(schedule, times)

    def update(carry, inputs):
        step, t, coefficients = inputs
        noise = lambda draw=0: standard_normal(keys, step, draw, x)  # noqa: E731
        carry = sampler.update(denoise, carry, jnp.full(x.shape[0], t), coefficients, noise)
        return carry, sampler.finish(carry) if trajectory else None

    carry, path = jax.lax.scan(update, sampler.init(x), (jnp.asarray(plan.step), plan.t, plan.coefficients))
    if not trajectory:
        return sampler.finish(carry)
    step_ends = np.searchsorted(plan.step, np.arange(len(times) - 1), side="right") - 1
    return jnp.concatenate([x[None], path[step_ends]])


def _as_times(times: Times, dtype: DTypeLike) -> Array:
    """times in float32, or in dtype where that is more precise, with known values where they can be known."""
    if np.ndim(times) != 1 or len(times) < 2:
        raise UserError(f"a time grid holds at least 2 times; got shape {np.shape(times)}")
    with jax.ensure_compile_time_eval():
        times = jnp.asarray(times, jnp.promote_types(dtype, jnp.float32))
    if is_concrete(times) and (repeated := np.flatnonzero(np.diff(times) == 0)).size:
        raise UserError(f"a time grid has no step of length 0; got t = {float(times[repeated[0]]):.6g} twice in a row")
    return times


def sample(
    denoise: Denoiser,
    sampler: Sampler | AdaptiveSampler,
    schedule: Schedule,
    times: Times,
    seeds: Array,
    shape: tuple[int, ...],
    *,
    trajectory: bool = False,
    start: Array | None = None,
) -> Array:
    """Samples [B, *shape]: x ~ N(0, prior_std^2 I), integrated along times from times[0], at or near 1, to times[-1].

    seeds [B] are integers, and shape is that of one example. Sample i depends on seeds[i] alone, not on the batch, the
    other examples or the mesh. start [B, *shape], standard normal, replaces the noise that the seeds give
    (`start_noise`). With trajectory, x at every time is returned: [N + 1, B, *shape]. Raises UserError for a grid that
    starts where x is more signal than noise, as `leading` does with one step, and as `integrate` does.
    """
    _check_start(schedule, times)
    step_keys = _keys(seeds)[1]
    noise = start_noise(seeds, shape) if start is None else start
    chex.assert_shape(noise, (*seeds.shape, *shape), custom_message=f"start is [B, *shape]; got {noise.shape}")
    x = schedule.prior_std * noise
    return integrate(denoise, sampler, schedule, times, x, step_keys, trajectory=trajectory)


def start_noise(seeds: Array, shape: tuple[int, ...]) -> Array:
    """The standard normal noise [B, *shape] from which `sample` starts with these seeds [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(_keys(seeds)[0])


def _keys(seeds: Array) -> Array:
    """The keys of each seed for the start and for the steps, [2, B]."""
    return jax.vmap(jax.random.split, out_axes=1)(jax.vmap(jax.random.key)(seeds))


def _check_start(schedule: Schedule, times: Times) -> None:
    with jax.ensure_compile_time_eval():
        start = jnp.asarray(times, jnp.float32)[0]
        levels = schedule.level(start)
    if not is_concrete(levels.alpha):
        return
    t, alpha, sigma = float(start), float(levels.alpha), float(levels.sigma)
    if t < 1 and alpha > sigma:
        raise UserError(
            f"sampling starts from noise, but this time grid starts at t = {t:.4g}, where the schedule has "
            f"alpha {alpha:.2g} and sigma {sigma:.2g}; take more steps, or time grid 'trailing'"
        )
