"""Linear maps of the channels; parameters are float32 whatever the `dtype` of the computation."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.nets.context import tokens_are_split
from diffusion_jax.nets.rematerialization import product

INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
"""DDPM's initialization of every convolution and dense layer that does not start at zero (`nn.py` of its code)."""

ZERO = nn.initializers.zeros_init()


class Parameters(nn.Module):
    """Those of a `Dense`, for whoever applies them: the width C of its input -> kernel [C, features], bias or None."""

    features: int
    kernel_init: nn.initializers.Initializer = INIT
    bias: bool = True

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, Array | None]:
        """C -> (kernel [C, features], bias [features]), float32."""
        kernel = self.param("kernel", self.kernel_init, (width, self.features), jnp.float32)
        return kernel, self.param("bias", ZERO, (self.features,), jnp.float32) if self.bias else None


def linear(x: Array, kernel: Array, bias: Array | None, dtype: DTypeLike) -> Array:
    """x [..., C], kernel [C, D], bias [D] -> [..., D] of dtype."""
    # As a matrix: of a dot with more axes, XLA's CPU compiler transposes the gradient's operands first. But tokens that
    # are split over devices have to stay an axis of their own, or every device gathers them.
    rows = x.astype(dtype) if tokens_are_split() else x.astype(dtype).reshape(-1, x.shape[-1])
    rows = rows @ kernel.astype(dtype)
    if bias is not None:
        rows += bias.astype(dtype)
    return product(rows.reshape(*x.shape[:-1], kernel.shape[-1]))


class Dense(nn.Module):
    """A linear map of the channels and, where asked, a bias: [..., C] -> [..., features]."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = INIT
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] -> [..., features] of `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", ZERO, (self.features,), jnp.float32) if self.bias else None
        return linear(x, kernel, bias, self.dtype)
