"""A network family in one file: a perceptron over all values of x at once."""

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from diffusion_jax.nets.layers import time_embedding
from diffusion_jax.nets.network import Network, TensorRule
from diffusion_jax.ranges import FROM_0, FROM_1, Range


class Perceptron(Network):
    """`depth` pairs of dense layers, each added to its input; time, class and levels are embedded and added."""

    width: int = 32
    depth: int = 2
    remat: bool = False

    tensor_rules: ClassVar[tuple[TensorRule, ...]] = (
        (r"layer_\d+_up/(kernel|bias)$", -1),
        (r"layer_\d+_down/kernel$", -2),
    )
    outer_layers: ClassVar[tuple[str, ...]] = ("embedding", "first", "last")
    ranges: ClassVar[Mapping[str, Range]] = {"width": FROM_1, "depth": FROM_0}

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False) -> Array:
        """As `Network`."""
        cond = cond or {}
        self.check_cond(x, cond)
        values = x.reshape(len(x), -1)
        h = nn.Dense(self.width, name="first")(values)
        h += nn.Dense(self.width, name="time")(time_embedding(t, self.width))
        if self.num_classes is not None:
            h += nn.Embed(self.num_classes + 1, self.width, name="label")(cond["label"])
        for name in self.levels:
            h += nn.Dense(self.width, name=f"level_{name}")(time_embedding(self.level_scale * cond[name], self.width))
        for i in range(self.depth):
            up = nn.gelu(nn.Dense(2 * self.width, name=f"layer_{i}_up")(h))
            h += nn.Dense(self.width, name=f"layer_{i}_down")(up)
        size = values.shape[1] // x.shape[-1] * self.out_channels
        out = nn.Dense(size, name="last", dtype=jnp.float32)(h)
        return out.reshape(*x.shape[:-1], self.out_channels)
