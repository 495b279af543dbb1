"""How training draws its times. On a discrete schedule every time is one of its steps {1/T, ..., 1}."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError

TimeSampler = Callable[[Array, int, Schedule], Array]
"""(key, n, schedule) -> times [n] in (0, 1]."""


def uniform() -> TimeSampler:
    """t uniform on a discrete schedule's steps {1/T, ..., 1}, as in algorithm 1 of DDPM, or on (0, 1]."""

    def draw(key: Array, n: int, schedule: Schedule) -> Array:
        if schedule.steps is None:
            return 1.0 - jax.random.uniform(key, (n,))
        return (jax.random.randint(key, (n,), 0, schedule.steps) + 1) / jnp.float32(schedule.steps)

    return draw


def low_discrepancy() -> TimeSampler:
    """t_i = 1 - (u + i / n) mod 1 with one u for the batch: each t is uniform, and each of n strata has one.

    The mean loss of a batch varies less. VDM (arXiv:2107.00630, appendix I.1) calls it antithetic.
    """

    def draw(key: Array, n: int, schedule: Schedule) -> Array:
        return _on_steps(1.0 - (jax.random.uniform(key) + jnp.arange(n) / n) % 1.0, schedule)

    return draw


def log_normal(mean: float = -1.2, std: float = 1.2) -> TimeSampler:
    """ln(sigma / alpha) ~ N(mean, std^2), as in EDM: table 1 of arXiv:2206.00364.

    t follows by the schedule's inverse, so the noise levels are the same on every schedule that has them. Raises
    UserError unless std > 0.
    """
    _check_std("log_normal", std)

    def draw(key: Array, n: int, schedule: Schedule) -> Array:
        return _on_steps(schedule.time(-2.0 * (mean + std * jax.random.normal(key, (n,)))), schedule)

    return draw


def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """ln(t / (1 - t)) ~ N(mean, std^2), as in Stable Diffusion 3: eq. 19 of arXiv:2403.03206.

    Raises UserError unless std > 0.
    """
    _check_std("logit_normal", std)

    def draw(key: Array, n: int, schedule: Schedule) -> Array:
        return _on_steps(jax.nn.sigmoid(mean + std * jax.random.normal(key, (n,))), schedule)

    return draw


def _on_steps(t: Array, schedule: Schedule) -> Array:
    """t in (0, 1], moved to the end of its step on a discrete schedule. Uniform t give uniform steps."""
    if schedule.steps is None:
        return jnp.clip(t, 1e-6, 1.0)
    return jnp.clip(jnp.ceil(t * schedule.steps), 1, schedule.steps) / jnp.float32(schedule.steps)


def _check_std(name: str, std: float) -> None:
    if std <= 0:
        raise UserError(f"time sampling {name!r} needs std > 0; got {std}")


class LossHistory(NamedTuple):
    """The latest losses in each bin of t. It is part of the training state, and the same on every host."""

    losses: Array  # [bins, history] float32
    counts: Array  # [bins] int32: how many losses each bin has had


class AdaptiveTimes(NamedTuple):
    """Times whose distribution depends on past losses, as pure functions that carry a `LossHistory`."""

    init: Callable[[Schedule], LossHistory]
    """schedule -> the empty history."""

    draw: Callable[[Array, int, Schedule, LossHistory], tuple[Array, Array]]
    """(key, n, schedule, history) -> (times [n], weights [n]). weight * loss has the mean that uniform times give."""

    update: Callable[[LossHistory, Array, Array], LossHistory]
    """(history, times [n], unweighted losses [n] of the global batch) -> history."""


def loss_second_moment(history: int = 10, uniform: float = 0.001, bins: int = 100) -> AdaptiveTimes:
    """p(t) proportional to sqrt(E[L_t^2]) over the latest losses of each step: importance sampling.

    Eq. 18 of improved DDPM (arXiv:2102.09672), whose L_vlb needs it. Times are uniform until each bin has `history`
    losses. From then on a share `uniform` of them is uniform, as in the paper's code. A bin is a step of a discrete
    schedule; on a continuous schedule it is one of `bins` equal parts of (0, 1], in which times are uniform. Raises
    UserError unless history >= 1, bins >= 1 and uniform is in [0, 1].
    """
    if history < 1 or bins < 1 or not 0 <= uniform <= 1:
        raise UserError(
            "time sampling 'loss_second_moment' needs history >= 1, bins >= 1 and uniform in [0, 1]; "
            f"got {history}, {bins} and {uniform}"
        )

    def init(schedule: Schedule) -> LossHistory:
        size = schedule.steps or bins
        return LossHistory(jnp.zeros((size, history), jnp.float32), jnp.zeros(size, jnp.int32))

    def probabilities(state: LossHistory) -> Array:
        size = state.counts.shape[0]
        # In float32 the square of a loss above 1e19 is infinite. Scaling by a power of two changes no bit of p.
        exponent = jnp.frexp(jnp.max(jnp.abs(state.losses)))[1]
        rms = jnp.sqrt(jnp.mean(jnp.ldexp(state.losses, -exponent) ** 2, axis=-1))
        total = jnp.sum(rms)
        p = (1 - uniform) * rms / jnp.where(total > 0, total, 1.0) + uniform / size
        warm = jnp.all(state.counts >= history) & (total > 0)
        return jnp.where(warm, p, 1.0 / size)

    def draw(key: Array, n: int, schedule: Schedule, state: LossHistory) -> tuple[Array, Array]:
        bin_key, within_key = jax.random.split(key)
        size = state.counts.shape[0]
        p = probabilities(state)
        i = jax.random.categorical(bin_key, jnp.log(p), shape=(n,))
        offset = 1.0 if schedule.steps else 1.0 - jax.random.uniform(within_key, (n,))
        return (i + offset) / jnp.float32(size), 1.0 / (size * p[i])

    def update(state: LossHistory, t: Array, losses: Array) -> LossHistory:
        size, n = state.counts.shape[0], t.shape[0]
        # With 1 - 1e-6 the end of a step lies in that step, whichever way t * size is rounded.
        i = jnp.clip(jnp.ceil(t * size * (1.0 - 1e-6)).astype(jnp.int32) - 1, 0, size - 1)
        order = jnp.argsort(i, stable=True)
        first, end = (jnp.searchsorted(i[order], jnp.arange(size), side=side) for side in ("left", "right"))
        added = (end - first).astype(jnp.int32)  # [bins]
        rank = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32)) - first[i]
        # Each bin is a ring. Where a batch has more losses for a bin than the ring holds, the last ones stay; the
        # others get a slot out of bounds, which a scatter drops.
        slot = jnp.where(rank >= added[i] - history, (state.counts[i] + rank) % history, history)
        losses_by_bin = state.losses.at[i, slot].set(losses.astype(jnp.float32), mode="drop")
        return LossHistory(losses_by_bin, state.counts + added)

    return AdaptiveTimes(init, draw, update)


TIMES: dict[str, Callable[..., TimeSampler]] = {
    "uniform": uniform,
    "low_discrepancy": low_discrepancy,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
}

ADAPTIVE_TIMES: dict[str, Callable[..., AdaptiveTimes]] = {"loss_second_moment": loss_second_moment}
