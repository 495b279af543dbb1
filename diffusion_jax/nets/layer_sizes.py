"""The layers of a network with their sizes, without computing anything."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from diffusion_jax.nets.network import Network


@dataclasses.dataclass(frozen=True)
class LayerSize:
    """A layer of a network."""

    path: tuple[str, ...]  # the names of its module, from the network on
    kind: str  # the name of its class
    shape: tuple[int, ...]  # *S C of what it gives
    parameters: int


def sizes(network: Network, x_shape: tuple[int, ...], entries: Mapping[str, Array]) -> list[LayerSize]:
    """The layers that a network calls itself, and those that these call, in the order in which they end.

    x_shape is *S C of one example; entries are those of cond for one example [1, ...]. Nothing is allocated.
    """
    calls: list[tuple[tuple[str, ...], str, tuple[int, ...]]] = []

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and 1 <= len(context.module.path) <= 2:
            first = out[0] if isinstance(out, tuple) else out
            calls.append((context.module.path, type(context.module).__name__, first.shape[1:]))
        return out

    x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, *x_shape), (1,)))
    with nn.intercept_methods(note):
        made = jax.eval_shape(network.init, jax.random.key(0), x, t, dict(entries))
    return [LayerSize(path, kind, shape, _count(made["params"], path)) for path, kind, shape in calls]


def _count(params: Mapping[str, Any], path: tuple[str, ...]) -> int:
    """The number of parameters of the module at path."""
    inside: Any = params
    for name in path:
        inside = inside.get(name, {})
    return sum(math.prod(a.shape) for a in jax.tree.leaves(inside))
