"""The state of a training run: all arrays that a step changes."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from diffusion_jax.core.objectives import Tree

Params = Any
"""A pytree of float32 arrays."""

Position = Any
"""The position of a data iterator: a value that JSON can hold, which only the iterator understands."""


class TrainState(NamedTuple):
    """What a step maps to the next state. With the batches and the seed it determines the rest of the run."""

    step: Array  # int32 scalar: the number of steps done
    params: Params
    ema: Params  # exponential moving average of params
    opt_state: optax.OptState
    history: Tree = ()  # what the objective keeps of past losses (`core.objectives.Memory`); () for nothing
    profiles: tuple[Params, ...] = ()  # averages by power functions (`train.ema`); () for none


def create(
    params: Params, optimizer: optax.GradientTransformation, history: Tree = (), *, profiles: int = 0
) -> TrainState:
    """The state before the first step. The average and `profiles` further averages begin as the parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params), history, (params,) * profiles)
