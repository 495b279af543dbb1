"""The state of a training run: everything that a step changes."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

Params = Any
"""A pytree of float32 arrays."""

Position = Any
"""The position of a data iterator: a value that JSON can hold, which only the iterator understands."""


class TrainState(NamedTuple):
    """What a step maps to the next: with the batch and the seed it determines everything that follows."""

    step: Array  # int32 scalar: the number of steps done
    params: Params
    ema: Params  # exponential moving average of params
    opt_state: optax.OptState
    history: Any = ()  # what the objective remembers of past losses, `core.objectives.Memory`; () for nothing
    profiles: tuple[Params, ...] = ()  # averages of power-function profiles, `train.ema`; () where none is kept


def create(
    params: Params, optimizer: optax.GradientTransformation, history: Any = (), *, profiles: int = 0
) -> TrainState:
    """The state before the first step; the averages, so many profiles too, start as copies of the parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params), history, (params,) * profiles)
