"""Trials of a sweep as one program, in whose step the keys that differ between their configs are arguments.

The state of K trials is a `TrainState` whose arrays, except the step, lead with K. So do seeds and values.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.experiment import training
from diffusion_jax.models.model import Model
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params, TrainState
from diffusion_jax.train.step import Batch, Metrics

KEYS = (
    "seed",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "ema.decay",
    "vlb_weight",
    "condition_dropout",
)
"""Keys of a config that change no shape and no structure of a step.

b1 and b2 are not among them: 1 - b2 of a float32 b2 is wrong by 1e-5, so a trial would not equal its single run.
"""

Steps = Callable[[TrainState, Batch, Array, Mapping[str, Array]], tuple[TrainState, Metrics]]
"""(states, batch, seed keys [K], {key: [K]}) -> (states, metrics), each of which leads with K."""


def values(trials: Sequence[ConfigDict], keys: Sequence[str]) -> dict[str, Array]:
    """{key: its values in the configs of the trials [K]}. Raises UserError for a key that is not in `KEYS`."""
    if refused := [key for key in keys if key not in KEYS]:
        raise UserError(
            f"--vectorised cannot sweep {', '.join(refused)}, which may change shapes or the program; "
            f"it takes {', '.join(KEYS)}; leave --vectorised out to sweep others"
        )
    for config in trials:
        training.check_optimizer(config)
    dtypes = {key: jnp.int32 if key == "seed" else jnp.float32 for key in keys}
    return {key: jnp.asarray([_get(config, key) for config in trials], dtypes[key]) for key in keys}


def initial_states(config: ConfigDict, model: Model, mesh: Mesh, seeds: Array) -> TrainState:
    """The states of K trials before their first step, by their seeds [K]."""
    draw = jax.vmap(lambda seed: _random_state(_changed(config, {"seed": seed}), model))
    return jax.jit(lambda seeds: _of_one_step(draw(seeds)), out_shardings=sharding.replicated(mesh))(seeds)


def train_steps(
    config: ConfigDict,
    model: Model,
    mesh: Mesh,
    pretrained: Mapping[str, Params] = training.NO_WEIGHTS,
    *,
    own_batches: bool = False,
    at_once: bool = True,
) -> Steps:
    """The step of all trials, not yet compiled. at_once runs them by `vmap`, otherwise one after another.

    All trials get the same batch or, with own_batches, each its own: [K, B, ...], after the axis of the steps of a
    dispatch, if there is one. A `vmap` over kernels gives grouped convolutions, for which XLA has no fast kernels on a
    CPU.
    """
    several = int(config.train.steps_per_dispatch > 1)

    def step(state: TrainState, batch: Batch, seed: Array, values: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        changed = _changed(config, values)
        return training.train_step(changed, training.of_model(changed, model), mesh, pretrained)(state, batch, seed)

    def steps(
        states: TrainState, batch: Batch, seeds: Array, values: Mapping[str, Array]
    ) -> tuple[TrainState, Metrics]:
        states = states._replace(step=jnp.broadcast_to(states.step, seeds.shape))
        if own_batches:
            batch = jax.tree.map(lambda a: jnp.moveaxis(a, several, 0), batch)
        if at_once:
            states, metrics = jax.vmap(step, in_axes=(0, 0 if own_batches else None, 0, 0))(
                states, batch, seeds, values
            )
        elif own_batches:
            states, metrics = jax.lax.map(lambda trial: step(*trial), (states, batch, seeds, values))
        else:
            states, metrics = jax.lax.map(lambda trial: step(trial[0], batch, *trial[1:]), (states, seeds, values))
        return _of_one_step(states), metrics

    return steps


@jax.jit
def one(states: TrainState, k: int | Array) -> TrainState:
    """The state of trial k, of the states of all trials."""
    fields = {name: jax.tree.map(lambda a: a[k], getattr(states, name)) for name in states._fields if name != "step"}
    return states._replace(**fields)


def together(states: Sequence[TrainState], mesh: Mesh) -> TrainState:
    """The states of trials that are at the same step, as one state on the mesh."""
    stacked = _of_one_step(jax.tree.map(lambda *arrays: jnp.stack(arrays), *states))
    return jax.device_put(stacked, sharding.replicated(mesh))


def _of_one_step(states: TrainState) -> TrainState:
    """The states with a scalar step, which is the same for all trials."""
    return states._replace(step=states.step[0])


def _random_state(config: ConfigDict, model: Model) -> TrainState:
    return training.random_state(config, training.of_model(config, model))


def _changed(config: ConfigDict, values: Mapping[str, Array]) -> ConfigDict:
    """config with traced numbers in place of its own."""
    changed = ConfigDict(config.to_dict())
    with changed.ignore_type():
        changed.update_from_flattened_dict(dict(values))
    return changed


def _get(config: ConfigDict, key: str) -> float:
    """The number at a dotted key."""
    return functools.reduce(lambda part, name: part[name], key.split("."), config)
