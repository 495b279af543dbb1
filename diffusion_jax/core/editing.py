"""Editing a given image with any trained denoiser: start from it, keep a part of it, work in windows of it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.process import diffuse, transition
from diffusion_jax.core.samplers.ancestral import ddim_inversion
from diffusion_jax.core.samplers.loop import AdaptiveSampler, Plan, Sampler, Times, integrate
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError

_LEAST_STEP = 0.01  # of the grid's own step; multistep samplers divide by the first step's length


def from_strength(times: np.ndarray, strength: float) -> np.ndarray:
    """The times of an edit, from strength itself down a grid [N + 1] to its end: SDEdit's t0 (arXiv:2108.01073).

    strength, then the grid's times below it: a shortened first step. A time of the grid that would leave less than a
    hundredth of its step is passed over, but not the last. Raises UserError unless strength is in (0, 1].
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength is in (0, 1], where 1 keeps nothing of the image; got {strength}")
    times = np.asarray(times, np.float64)
    below = times[times < strength]
    if not len(below):
        return np.array([strength, 0.0])
    first = len(times) - len(below)
    step = times[max(first - 1, 0)] - times[max(first, 1)]
    if len(below) > 1 and strength - below[0] < _LEAST_STEP * step:
        below = below[1:]
    return np.append(strength, below)


def sample_from(
    denoise: Denoiser,
    sampler: Sampler | AdaptiveSampler,
    schedule: Schedule,
    times: Times,
    seeds: Array,
    x0: Array,
) -> Array:
    """SDEdit (arXiv:2108.01073): diffuses x0 [B, ...] to times[0] and integrates back along times; [B, ...].

    Sample i depends on seeds[i] and x0[i] alone, but for rounding. Its noise is `sample`'s, so from times[0] = 1 on a
    schedule that ends without signal it is that sample.
    """
    prior_key, keys = jax.vmap(jax.random.split, out_axes=1)(jax.vmap(jax.random.key)(seeds))
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(prior_key)
    x = diffuse(x0, eps, schedule.level(times[0]))
    return integrate(denoise, sampler, schedule, times, x, keys)


def step_keys(seeds: Array) -> Array:
    """The keys of the steps' noise of `sample_from` [B], where x does not start from the seeds."""
    return jax.vmap(jax.random.split, out_axes=1)(jax.vmap(jax.random.key)(seeds))[1]


def invert(denoise: Denoiser, schedule: Schedule, times: Times, x0: Array) -> Array:
    """The x at times[0] from which DDIM over times leads to x0 [B, ...], to first order (`ddim_inversion`)."""
    keys = jax.vmap(jax.random.key)(jnp.zeros(len(x0), jnp.int32))  # nothing is drawn
    return integrate(denoise, ddim_inversion(), schedule, times[::-1], x0, keys)


def repaint(
    sampler: Sampler | AdaptiveSampler, known: Array, unknown: Array, resample: int = 1, jump: int = 1
) -> Sampler:
    """RePaint, algorithm 1 (arXiv:2201.09865): the sampler, with all but the unknown part put back at every step.

    known broadcasts to x [B, ...], as does unknown, True where there is something to paint. After a step to s the
    known part is alpha_s known + sigma_s z, so at the end it is known itself. Every `jump` steps the last `jump` steps
    are taken `resample` times, each time but the first from x_s diffused `jump` steps up again: that is what makes the
    two parts agree, at about `resample` times the cost (`resampled_steps`). The paper's are 10 and 10 of 250 steps.
    The sampler takes one evaluation a step and remembers nothing: ddpm, ddim, euler or euler_ancestral.
    """
    if resample < 1 or jump < 1:
        raise UserError(f"resample and jump are at least 1; got {resample} and {jump}")
    unfit = UserError(
        "keeping a part of an image needs a sampler of one evaluation a step that remembers nothing; "
        "choose ddpm, ddim, euler or euler_ancestral"
    )
    if isinstance(sampler, AdaptiveSampler):
        raise unfit

    def plan(schedule: Schedule, times: Array) -> Plan:
        base = sampler.plan(schedule, times)
        steps = len(times) - 1
        if len(base.step) != steps or sampler.init is not Sampler._field_defaults["init"]:
            raise unfit
        taken, again = resampled_steps(steps, resample, jump)
        levels = schedule.level(times)
        landing = jax.tree.map(lambda a: a[taken + 1], levels)
        raised = jax.tree.map(lambda a: a[np.where(again, taken + 1 - jump, taken + 1)], levels)
        ratio, variance = transition(landing, raised)
        coefficients, t = jax.tree.map(lambda a: jnp.asarray(a)[taken], (base.coefficients, base.t))
        # The scan counts the steps that are done, which never falls: a step taken again belongs to the furthest.
        furthest = np.maximum.accumulate(taken)
        turn = np.arange(len(taken)) - np.searchsorted(furthest, furthest)
        back = (ratio, jnp.sqrt(variance), jnp.asarray(again))
        return Plan((coefficients, landing, back, jnp.asarray(turn)), t, furthest)

    def update(denoise, x, t, coefficients, noise):
        base, s, (ratio, std, again), turn = coefficients
        # A base sampler draws 0 and 1 of a step; here a step has turns, each with draws of its own.
        draw = lambda number=0: noise(4 * turn + number)  # noqa: E731
        x = sampler.update(denoise, x, t, base, draw)
        x = jnp.where(unknown, x, diffuse(jnp.broadcast_to(known, x.shape), draw(2), s))
        if resample == 1:
            return x
        return jnp.where(again, ratio * x + std * draw(3), x)

    return Sampler(plan, update)


def resampled_steps(steps: int, resample: int, jump: int) -> tuple[np.ndarray, np.ndarray]:
    """RePaint's schedule: (which of the steps 0 .. N - 1 is taken [E], whether x is diffused up after it [E]).

    Figure 3 and appendix B of arXiv:2201.09865. x is diffused `jump` steps up, resample - 1 times, where 1, 1 + jump,
    1 + 2 jump, ... steps are left, as long as that does not lead above the start. Never from the data itself: nothing
    can be diffused back from there to agree better.
    """
    if resample > 1 and jump > max(steps - 1, 1):
        raise UserError(f"a jump of {jump} steps needs more than {jump} of them; this edit takes {steps}")
    taken: list[int] = []
    again: list[bool] = []
    for step in range(steps):
        taken.append(step)
        again.append(False)
        left = steps - 1 - step
        if jump - 1 <= step and left >= 1 and (left - 1) % jump == 0:
            for _ in range(resample - 1):
                again[-1] = True
                taken += range(step + 1 - jump, step + 1)
                again += [False] * jump
    return np.array(taken), np.array(again)


def windows(length: int, size: int, stride: int) -> np.ndarray:
    """Where windows of `size` begin that cover `length`, int [n]: every stride, and one that ends at the end."""
    if not 0 < stride <= size:
        raise UserError(f"windows of {size} leave gaps unless their stride is from 1 to {size}; got {stride}")
    if length < size:
        raise UserError(f"windows of {size} do not fit into {length}")
    return np.append(np.arange(0, length - size, stride), length - size)


def in_windows(denoise: Denoiser, size: Sequence[int], stride: Sequence[int]) -> Denoiser:
    """The denoiser of x [B, *S, C] larger than its own size [*size]: predictions of overlapping windows, averaged.

    MultiDiffusion (arXiv:2302.08113, eq. 5). Weights fall linearly to a window's edges, so none is seen. A learned
    variance is averaged too. The windows of a step are one call on a batch of n B.
    """

    def windowed(x: Array, t: Array) -> Prediction:
        spatial = x.shape[1:-1]
        parts = _places(spatial, size, stride)
        weight = _tent(size)[..., None]
        prediction = denoise(crops(x, size, stride), jnp.repeat(t, len(parts)))
        total = np.zeros((*spatial, 1), np.float32)
        for part in parts:
            total[part] += weight

        def merge(a: Array) -> Array:
            a = a.reshape(x.shape[0], len(parts), *a.shape[1:])
            merged = jnp.zeros(x.shape, a.dtype)
            for i, part in enumerate(parts):
                merged = merged.at[(slice(None), *part)].add(weight * a[:, i])
            return merged / total

        return jax.tree.map(merge, prediction)

    return windowed


def count_windows(canvas: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> int:
    """How many windows of [*size] cover a canvas [*S]."""
    return len(_places(canvas, size, stride))


def crops(x: Array, size: Sequence[int], stride: Sequence[int]) -> Array:
    """The n windows of each example of x [B, *S, C], an example's beside one another: [B n, *size, C]."""
    windows = [x[(slice(None), *part)] for part in _places(x.shape[1:-1], size, stride)]
    return jnp.stack(windows, axis=1).reshape(-1, *size, x.shape[-1])


def blend(image: Array, drawn: Array, unknown: Array, border: int = 0) -> Array:
    """drawn where it is unknown, the image elsewhere; within `border` pixels of what is known, some of both.

    All [B, H, W, C], unknown broadcasting. The share of drawn rises linearly from the border inwards, so what is known
    comes back as it is.
    """
    share = jnp.broadcast_to(unknown, (*drawn.shape[:-1], 1)).astype(drawn.dtype)
    if border:
        known = 1 - share
        near = [known]  # after k rounds, 1 within k pixels of what is known
        for _ in range(border - 1):
            near.append(jax.lax.reduce_window(near[-1], 0.0, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"))
        share = 1 - jnp.mean(jnp.stack(near), axis=0)
    return jnp.where(share > 0, share * drawn + (1 - share) * image, image)


def _places(canvas: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> list[tuple[slice, ...]]:
    """The windows' slices of the spatial axes."""
    starts = [windows(*lengths) for lengths in zip(canvas, size, stride, strict=True)]
    places = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(size))
    return [tuple(slice(int(p), int(p) + n) for p, n in zip(place, size, strict=True)) for place in places]


def _tent(size: Sequence[int]) -> np.ndarray:
    """[*size] the product over axes of 1 at an edge, 2 beside it, ... up to the middle."""
    weight = np.ones(tuple(size), np.float32)
    for axis, n in enumerate(size):
        ramp = np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32)
        weight = weight * ramp.reshape([-1 if i == axis else 1 for i in range(len(size))])
    return weight
