"""One `lax.scan` runs any fixed-step sampler, one network evaluation an iteration; sample i depends on seed i alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.schedules import Level, Schedule
from diffusion_jax.errors import UserError

Times = Array | np.ndarray
"""A time grid [N + 1]. As numbers, which a numpy array is in a program that is traced too, rather than as a traced
array, it tells a sampler whether it ends at the data."""

Noise = Callable[..., Array]
"""noise(draw=0): standard normal noise of x's shape, the step's independent draw of that number.

It depends on (key of the example, step, draw) alone. A deterministic sampler never calls it and pays nothing.
"""


class Plan(NamedTuple):
    """The evaluations that integrate a grid of N steps, in order; every leaf leads with their number E >= N."""

    coefficients: Any
    """Whatever each evaluation's update needs, as a pytree."""
    t: Array
    """[E] the time that the network is told."""
    step: np.ndarray
    """[E] the step that each belongs to, rising from 0 to N - 1."""


class Sampler(NamedTuple):
    """A numerical method for the reverse process, as pure functions.

    `plan(schedule, times [N + 1])` says, before the scan, which evaluations there are and computes all their
    coefficients at once. `update(denoise, carry, t [B], coefficients of this evaluation, noise)` calls `denoise` once
    and advances the carry, which `init(x)` makes of the start and `finish(carry)` turns into x; both default to
    carrying x itself.
    """

    plan: Callable[[Schedule, Array], Plan]
    update: Callable[[Denoiser, Any, Array, Any, Noise], Any]
    init: Callable[[Array], Any] = lambda x: x
    finish: Callable[[Any], Array] = lambda carry: carry


class AdaptiveSampler(NamedTuple):
    """A method that calls the denoiser as often as each example takes.

    `solve(denoise, schedule, times [N + 1], x, trajectory)` is x at times[-1], or with trajectory at times[1:]:
    [N, B, ...].
    """

    solve: Callable[[Denoiser, Schedule, Array, Array, bool], Array]


def one_evaluation_a_step(times: Array, coefficients: Any) -> Plan:
    """The plan whose step n evaluates the network at times[n]; coefficients lead with N."""
    return Plan(coefficients, times[:-1], np.arange(len(times) - 1))


def two_evaluations_a_step(times: Array, t: tuple[Array, Array], coefficients: tuple[Any, Any], *, last: int) -> Plan:
    """The plan of a two-stage method: t and coefficients [N] of the first and second stage; `last` of the last step."""

    def interleave(first: Array, second: Array) -> Array:
        return jnp.stack([first, second], axis=1).reshape(-1)[:count]

    steps = len(times) - 1
    count = 2 * (steps - 1) + last
    return Plan(jax.tree.map(interleave, *coefficients), interleave(*t), np.repeat(np.arange(steps), 2)[:count])


def steps_of(schedule: Schedule, times: Array) -> tuple[Level, Level]:
    """The levels where each step starts (t) and where it ends (s); scalars of the N steps, [N]."""
    levels = schedule.level(times)
    return jax.tree.map(lambda a: a[:-1], levels), jax.tree.map(lambda a: a[1:], levels)


def ends_at_data(schedule: Schedule, times: Array) -> bool:
    """Whether sigma is 0 at the last time; taken to be so where it is not known before the program runs."""
    with jax.ensure_compile_time_eval():
        sigma = schedule.sigma(times[-1])
    return not is_concrete(sigma) or float(sigma) == 0


def is_concrete(a: Array) -> bool:
    """Whether the values of a are known while the program is traced."""
    return not isinstance(a, jax.core.Tracer)


def evaluations(sampler: Sampler | AdaptiveSampler, schedule: Schedule, times: Times) -> int | None:
    """How often the sampler calls the denoiser over times, its NFE; None where that depends on the data."""
    if isinstance(sampler, AdaptiveSampler):
        return None
    return len(sampler.plan(schedule, _as_times(times, jnp.float32)).step)


def standard_normal(keys: Array, step: Array | int, draw: Array | int, like: Array) -> Array:
    """Independent N(0, 1) noise of like's shape [B, ...], a function of (keys[i], step, draw)."""

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
    """Carries x [B, ...] from times[0] to times[-1]; times [N + 1] falls but for an inversion.

    Returns x, or with trajectory x at every time: [N + 1, B, ...].
    keys [B] are the examples' random keys: example i's noise depends on keys[i] and the step alone.
    """
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


def _as_times(times: Times, dtype: Any) -> Array:
    """times in float32 or better, as a concrete array where it can be."""
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
    """Draws x ~ N(0, prior_std^2 I) and integrates it along times, from times[0], 1 or near it, to times[-1].

    start [B, *shape], standard normal, stands for the first draw where it is given (`start_noise`).
    seeds [B] are integers, shape is one example's; sample i depends on seeds[i] alone, not on the batch, its
    neighbours or the mesh. Returns [B, *shape], or [N + 1, B, *shape] with trajectory. Raises UserError for a grid
    that starts where x is more signal than noise, as `leading` does with one step.
    """
    _check_start(schedule, times)
    step_keys = _keys(seeds)[1]
    x = schedule.prior_std * (start_noise(seeds, shape) if start is None else start)
    return integrate(denoise, sampler, schedule, times, x, step_keys, trajectory=trajectory)


def start_noise(seeds: Array, shape: tuple[int, ...]) -> Array:
    """The standard normal noise [B, *shape] that `sample` starts from with these seeds."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(_keys(seeds)[0])


def _keys(seeds: Array) -> Array:
    """[2, B]: each seed's keys of the start and of the steps."""
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
