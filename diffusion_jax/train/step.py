"""The training step: a pure function of (state, batch, seed) and nothing else."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from diffusion_jax.core.objectives import Drawn, Examples, Objective, Trained
from diffusion_jax.errors import UserError
from diffusion_jax.train import ema
from diffusion_jax.train.state import Params, TrainState

Batch = Mapping[str, Array]
"""Named arrays, each with a leading axis B."""

Metrics = dict[str, Any]
"""Scalars, and a `Binned`; with a leading axis n where n steps were one dispatch."""

Step = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]
"""(state, batch, seed key) -> (next state, metrics)."""

TIME_BINS = 10

OPTIMIZER, AVERAGE = "optimizer", "average"
"""The names by which a profile, and a plan, knows what follows the gradient."""


class Binned(NamedTuple):
    """Sums of a quantity in each of k equal parts of (0, 1], so that means over many steps are exact."""

    total: Array  # [k]
    weight: Array  # [k]: how many values each part got


def train_step(
    objective: Objective,
    examples: Callable[[Array, Batch], Examples],
    trained: Callable[[Params, Array], Trained],
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    ema_warmup: bool,
    accumulate: int = 1,
    gammas: Sequence[float] = (),
) -> Step:
    """One step of stochastic gradient descent on the mean of the objective's weighted losses.

    examples(key, batch) and then objective.draw make every random choice but dropout for the whole batch at once;
    objective.loss of trained(params, dropout key) gives one number an example [b]; so a step accumulated over
    micro-batches equals the step on the whole batch, dropout aside. state.profiles has an average for each of gammas
    (`train.ema`). Randomness is fold_in(seed, step): a resumed run draws what the uninterrupted one would have. Where
    the loss or the norm of its gradient is not finite the state stays as it was but for its count of steps, and
    loss_by_time, of an objective with a time, is empty. Raises UserError, when it is traced, for an entry of a batch
    that examples does not read.
    """

    def mean_loss(params: Params, drawn: Drawn, key: Array) -> tuple[Array, Array]:
        losses = objective.loss(trained(params, key), drawn.values)
        return jnp.mean(drawn.weight * losses), losses

    value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)

    def gradient(params: Params, drawn: Drawn, key: Array) -> tuple[tuple[Array, Array], Params]:
        if accumulate == 1:
            return value_and_grad(params, drawn, key)

        def add(total, inputs):
            (value, losses), grads = value_and_grad(params, *inputs)
            return jax.tree.map(jnp.add, total, (value, grads)), losses

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        micro = jax.tree.map(lambda a: _split(a, accumulate), drawn)
        total, losses = jax.lax.scan(add, zero, (micro, jax.random.split(key, accumulate)))
        value, grads = jax.tree.map(lambda a: a / accumulate, total)
        return (value, jnp.swapaxes(losses, 0, 1).reshape(-1)), grads

    def step(state: TrainState, batch: Batch, seed: Array) -> tuple[TrainState, Metrics]:
        draw_key, dropout_key = jax.random.split(jax.random.fold_in(seed, state.step))
        drawn = objective.draw(draw_key, all_read(examples, draw_key, batch), state.history, state.step)
        (value, losses), grads = gradient(state.params, drawn, dropout_key)
        with jax.named_scope(OPTIMIZER):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        with jax.named_scope(AVERAGE):
            average = ema.update(state.ema, params, ema.decay_at(state.step, ema_decay, ema_warmup))
            profiles = tuple(
                ema.update(profile, params, ema.power_decay(state.step, gamma))
                for profile, gamma in zip(state.profiles, gammas, strict=True)
            )
        history = objective.update(state.history, drawn, losses)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        stepped = TrainState(state.step, params, average, opt_state, history, profiles)
        with jax.named_scope(OPTIMIZER):
            kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state)
        metrics: Metrics = {"loss": value, "grad_norm": norm}
        if drawn.t is not None:
            metrics["loss_by_time"] = jax.tree.map(lambda a: jnp.where(finite, a, 0), by_time(drawn.t, losses))
        return kept._replace(step=state.step + 1), metrics

    return step


class _Observed(Mapping[str, Array]):
    """A batch that remembers which of its entries were read."""

    def __init__(self, batch: Batch):
        self._batch = batch
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Array:
        value = self._batch[name]
        self.read.add(name)
        return value

    def __contains__(self, name: object) -> bool:  # which Mapping would answer by reading
        return name in self._batch

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)


def all_read(examples: Callable[[Array, Batch], Examples], key: Array, batch: Batch) -> Examples:
    """examples(key, batch); raises UserError that names an entry of the batch that it did not read."""
    observed = _Observed(batch)
    found = examples(key, observed)
    if unread := sorted(set(batch) - observed.read):
        raise UserError(
            f"nothing reads the entry {unread[0]!r} of a batch; what is trained reads "
            f"{', '.join(sorted(observed.read))}: leave it out, or add the condition that reads it"
        )
    return found


def by_time(t: Array, losses: Array) -> Binned:
    """The losses [B] at times t [B] in (0, 1], summed in each of `TIME_BINS` parts."""
    bins = jnp.clip(jnp.ceil(t * TIME_BINS).astype(jnp.int32) - 1, 0, TIME_BINS - 1)
    inside = jax.nn.one_hot(bins, TIME_BINS, dtype=jnp.float32)  # [B, k]
    return Binned(losses.astype(jnp.float32) @ inside, inside.sum(axis=0))


def summarize(window: Sequence[Metrics]) -> dict[str, float]:
    """The mean of each metric over the dispatches of window, of its finite values; NaN where it has none.

    The metrics are on the host. A `Binned` "name" gives "name/0.0", "name/0.1", ...: where the bin begins. Bins that
    nothing fell in are left out.
    """
    means: dict[str, float] = {}
    for name in window[0]:
        values = [metrics[name] for metrics in window]
        if not isinstance(values[0], Binned):
            finite = np.ravel(values)[np.isfinite(np.ravel(values))]
            means[name] = float(np.mean(finite)) if finite.size else math.nan
            continue
        total, weight = (
            np.sum([a.reshape(-1, a.shape[-1]).sum(axis=0) for a in part], axis=0) for part in zip(*values, strict=True)
        )
        for i in np.flatnonzero(weight):
            means[f"{name}/{i / len(weight):.1f}"] = float(total[i] / weight[i])
    return means


def _split(a: Array, parts: int) -> Array:
    """[B, ...] -> [parts, B / parts, ...], example i in part i % parts: a sharded batch stays on its devices."""
    return jnp.swapaxes(a.reshape(-1, parts, *a.shape[1:]), 0, 1)


def several(step: Step) -> Step:
    """The step on n batches [n, B, ...] one after another in one dispatch; metrics are [n]."""

    def steps(state: TrainState, batches: Batch, seed: Array) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, batch, seed), state, batches)

    return steps
