"""Edits of a given image with any denoiser: start from the image, keep a part of it, work in windows of it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.arguments import check_one_each
from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.process import diffuse, transition
from diffusion_jax.core.samplers.ancestral import ddim_inversion
from diffusion_jax.core.samplers.loop import AdaptiveSampler, Plan, Sampler, Times, integrate
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError

_LEAST_STEP = 0.01  # as a share of the grid's step: multistep samplers divide by the length of the first step


def from_strength(times: np.ndarray, strength: float) -> np.ndarray:
    """The times of an edit: strength, SDEdit's t0 (arXiv:2108.01073), and then the times of a grid [N + 1] below it.

    The first step is shorter than the grid's. Where it would be less than a hundredth of the grid's step, the next time
    is left out, unless it is the last. Raises UserError unless strength is in (0, 1].
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
    """SDEdit (arXiv:2108.01073): diffuses x0 [B, ...] to times[0] and integrates back along times, to [B, ...].

    Sample i depends on seeds[i] and x0[i] alone, but for rounding. The noise is that of `sample` with the same seeds,
    so from times[0] = 1, on a schedule that ends without signal, the result is that of `sample`.
    """
    prior_key, keys = jax.vmap(jax.random.split, out_axes=1)(jax.vmap(jax.random.key)(seeds))
    check_one_each(x0, seeds=seeds)
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(prior_key)
    x = diffuse(x0, eps, schedule.level(times[0]))
    return integrate(denoise, sampler, schedule, times, x, keys)


def step_keys(seeds: Array) -> Array:
    """The keys [B] of the steps' noise in `sample_from`, for an x that does not start from the seeds' noise."""
    return jax.vmap(jax.random.split, out_axes=1)(jax.vmap(jax.random.key)(seeds))[1]


def invert(denoise: Denoiser, schedule: Schedule, times: Times, x0: Array) -> Array:
    """The x [B, ...] at times[0] from which DDIM over times leads to x0 [B, ...], to first order: `ddim_inversion`."""
    keys = jax.vmap(jax.random.key)(jnp.zeros(len(x0), jnp.int32))  # nothing is drawn
    return integrate(denoise, ddim_inversion(), schedule, times[::-1], x0, keys)


def repaint(
    sampler: Sampler | AdaptiveSampler, known: Array, unknown: Array, resample: int = 1, jump: int = 1
) -> Sampler:
    """RePaint, algorithm 1 of arXiv:2201.09865: the sampler, with the known part of x replaced after every step.

    known and unknown broadcast to x [B, ...]; unknown is True where there is something to paint. After a step to s the
    known part of x is alpha_s known + sigma_s z, so at the end it is known itself. Every `jump` steps, the last `jump`
    steps are taken `resample` times, each time but the first after x_s was diffused `jump` steps up. This makes both
    parts agree, and costs about `resample` times as much (`resampled_steps`). The paper has jumps of 10 steps, taken 10
    times, in 250 steps.

    Raises UserError unless the sampler has one evaluation a step and carries x alone, as ddpm, ddim, euler and
    euler_ancestral do, and unless resample and jump are at least 1.
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
        # The step of a plan never falls, so a step that is taken again counts as the furthest step so far.
        furthest = np.maximum.accumulate(taken)
        turn = np.arange(len(taken)) - np.searchsorted(furthest, furthest)
        back = (ratio, jnp.sqrt(variance), jnp.asarray(again))
        return Plan((coefficients, landing, back, jnp.asarray(turn)), t, furthest)

    def update(denoise, x, t, coefficients, noise):
        base, s, (ratio, std, again), turn = coefficients
        # A base sampler uses draws 0 and 1 of a step. Each turn of a step has draws of its own.
        draw = lambda number=0: noise(4 * turn + number)  # noqa: E731
        x = sampler.update(denoise, x, t, base, draw)
        x = jnp.where(unknown, x, diffuse(jnp.broadcast_to(known, x.shape), draw(2), s))
        if resample == 1:
            return x
        return jnp.where(again, ratio * x + std * draw(3), x)

    return Sampler(plan, update)


def resampled_steps(steps: int, resample: int, jump: int) -> tuple[np.ndarray, np.ndarray]:
    """RePaint's schedule of E evaluations: the step of each, int [E] in 0 .. N - 1, and whether x is then diffused up.

    Figure 3 and appendix B of arXiv:2201.09865. Where 1, 1 + jump, 1 + 2 jump, ... steps are left, x is diffused `jump`
    steps up, resample - 1 times, unless that leads above the start. It is not diffused up from the data itself. Raises
    UserError for a jump that is longer than the edit.
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
    """The starts of windows of `size` that cover `length`, int [n]: one every `stride`, the last ending at length.

    Raises UserError unless 0 < stride <= size <= length.
    """
    if not 0 < stride <= size:
        raise UserError(f"windows of {size} leave gaps unless their stride is from 1 to {size}; got {stride}")
    if length < size:
        raise UserError(f"windows of {size} do not fit into {length}")
    return np.append(np.arange(0, length - size, stride), length - size)


def in_windows(denoise: Denoiser, size: Sequence[int], stride: Sequence[int]) -> Denoiser:
    """A denoiser of x [B, *S, C] by one of smaller x [B, *size, C]: MultiDiffusion, eq. 5 of arXiv:2302.08113.

    The predictions of overlapping windows are averaged, with weights that fall linearly to a window's edges, so that no
    edge shows. A learned variance is averaged too. The n windows of a step are one call on a batch of n B.
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
    """The number of windows [*size] that cover a canvas [*S]."""
    return len(_places(canvas, size, stride))


def crops(x: Array, size: Sequence[int], stride: Sequence[int]) -> Array:
    """The n windows of each example of x [B, *S, C], those of an example in a row: [B n, *size, C]."""
    windows = [x[(slice(None), *part)] for part in _places(x.shape[1:-1], size, stride)]
    return jnp.stack(windows, axis=1).reshape(-1, *size, x.shape[-1])


def blend(image: Array, drawn: Array, unknown: Array, border: int = 0) -> Array:
    """The image with `drawn` in its unknown part: image and drawn [B, H, W, C], the mask unknown broadcasts to them.

    Within `border` pixels of the known part both are mixed: the share of drawn rises linearly with the distance. Known
    pixels come back unchanged.
    """
    share = jnp.broadcast_to(unknown, (*drawn.shape[:-1], 1)).astype(drawn.dtype)
    if border:
        known = 1 - share
        near = [known]  # near[k] is 1 within k pixels of the known part
        for _ in range(border - 1):
            near.append(jax.lax.reduce_window(near[-1], 0.0, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"))
        share = 1 - jnp.mean(jnp.stack(near), axis=0)
    return jnp.where(share > 0, share * drawn + (1 - share) * image, image)


def _places(canvas: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> list[tuple[slice, ...]]:
    """The slices of the spatial axes of each window."""
    starts = [windows(*lengths) for lengths in zip(canvas, size, stride, strict=True)]
    places = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(size))
    return [tuple(slice(int(p), int(p) + n) for p, n in zip(place, size, strict=True)) for place in places]


def _tent(size: Sequence[int]) -> np.ndarray:
    """The weights [*size] of a window: the product over axes of 1 at an edge, 2 beside it, and so on to the middle."""
    weight = np.ones(tuple(size), np.float32)
    for axis, n in enumerate(size):
        ramp = np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32)
        weight = weight * ramp.reshape([-1 if i == axis else 1 for i in range(len(size))])
    return weight
