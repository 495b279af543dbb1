"""The training step: a pure function of (state, batch, seed) and nothing else."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

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

Metrics = dict[str, "Array | Binned"]
"""Named scalars, and sums by time as `Binned`; with a leading axis n where n steps are one dispatch."""

Step = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]
"""(state, batch, seed key) -> (next state, metrics)."""

TIME_BINS = 10
"""Equal parts of (0, 1] by which losses are reported."""

OPTIMIZER, AVERAGE = "optimizer", "average"
"""Names of the parts of a step that follow the gradient, in profiles and in the tables of `plan`."""


class Binned(NamedTuple):
    """Sums of a quantity over k equal parts of (0, 1]. Sums of many steps give their exact means."""

    total: Array  # [k] the sum of the values in each part
    weight: Array  # [k] how many values are in each part


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
    """A step of stochastic gradient descent on the mean of the objective's weighted losses, not yet compiled.

    examples(key, batch) gives what the objective draws from, and trained(params, dropout key) what its loss sees. Both
    of them and objective.draw work on the whole batch, so that a step accumulated over `accumulate` micro-batches
    equals the step on the whole batch, dropout aside. state.profiles has an average for each of gammas (`train.ema`).

    Randomness is fold_in(seed, step): a resumed run draws what the uninterrupted run would have drawn. Where the loss
    or the norm of its gradient is not finite, the state keeps its arrays, only its step counts on, and loss_by_time is
    empty. The metrics are loss, grad_norm and, for an objective with a time, loss_by_time.

    Raises UserError, as the step is traced, for an entry of the batch that examples does not read.
    """

    def mean_loss(params: Params, drawn: Drawn, key: Array) -> tuple[Array, Array]:
        losses = objective.loss(trained(params, key), drawn.values)
        return jnp.mean(drawn.weight * losses), losses

    def step(state: TrainState, batch: Batch, seed: Array) -> tuple[TrainState, Metrics]:
        draw_key, dropout_key = jax.random.split(jax.random.fold_in(seed, state.step))
        drawn = objective.draw(draw_key, all_read(examples, draw_key, batch), state.history, state.step)
        value, losses, grads = _gradient(mean_loss, state.params, drawn, dropout_key, accumulate)
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
            chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state)
        metrics: Metrics = {"loss": value, "grad_norm": norm}
        if drawn.t is not None:
            metrics["loss_by_time"] = jax.tree.map(lambda a: jnp.where(finite, a, 0), by_time(drawn.t, losses))
        return chosen._replace(step=state.step + 1), metrics

    return step


MeanLoss = Callable[[Params, Drawn, Array], tuple[Array, Array]]
"""(params, drawn, dropout key) -> (mean weighted loss, losses [B])."""


def _gradient(
    mean_loss: MeanLoss, params: Params, drawn: Drawn, key: Array, accumulate: int
) -> tuple[Array, Array, Params]:
    """(mean loss, losses [B], gradient of the mean) of a batch, computed one micro-batch after another."""
    value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
    if accumulate == 1:
        (value, losses), grads = value_and_grad(params, drawn, key)
        return value, losses, grads

    def add(total, inputs):
        (value, losses), grads = value_and_grad(params, *inputs)
        return jax.tree.map(jnp.add, total, (value, grads)), losses

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    micro = jax.tree.map(lambda a: _split(a, accumulate), drawn)
    total, losses = jax.lax.scan(add, zero, (micro, jax.random.split(key, accumulate)))
    value, grads = jax.tree.map(lambda a: a / accumulate, total)
    return value, jnp.swapaxes(losses, 0, 1).reshape(-1), grads


class _Observed(Mapping[str, Array]):
    """A batch that records which of its entries are read."""

    def __init__(self, batch: Batch):
        self._batch = batch
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Array:
        value = self._batch[name]
        self.read.add(name)
        return value

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the entry
        return name in self._batch

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)


def all_read(examples: Callable[[Array, Batch], Examples], key: Array, batch: Batch) -> Examples:
    """examples(key, batch). Raises UserError that names an entry of the batch which examples did not read."""
    observed = _Observed(batch)
    found = examples(key, observed)
    if unread := sorted(set(batch) - observed.read):
        raise UserError(
            f"nothing reads the entry {unread[0]!r} of a batch; what is trained reads "
            f"{', '.join(sorted(observed.read))}: leave it out, or add the condition that reads it"
        )
    return found


def by_time(t: Array, losses: Array) -> Binned:
    """The sums of losses [B] at times t [B] in (0, 1] over each of the `TIME_BINS` parts."""
    bins = jnp.clip(jnp.ceil(t * TIME_BINS).astype(jnp.int32) - 1, 0, TIME_BINS - 1)
    inside = jax.nn.one_hot(bins, TIME_BINS, dtype=jnp.float32)  # [B, k]
    return Binned(losses.astype(jnp.float32) @ inside, inside.sum(axis=0))


def summarize(window: Sequence[Metrics]) -> dict[str, float]:
    """The mean of the finite values of each metric over the dispatches of window; NaN for a metric without any.

    The metrics are on the host. A `Binned` "name" becomes "name/0.0", "name/0.1", ..., each named by the time at which
    its part begins. Parts without a value are left out.
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
    """[B, ...] -> [parts, B / parts, ...], with example i in part i % parts, which moves no example between devices."""
    return jnp.swapaxes(a.reshape(-1, parts, *a.shape[1:]), 0, 1)


def several(step: Step) -> Step:
    """The step that takes n batches [n, B, ...] one after another in one dispatch; its metrics are [n]."""

    def steps(state: TrainState, batches: Batch, seed: Array) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, batch, seed), state, batches)

    return steps
