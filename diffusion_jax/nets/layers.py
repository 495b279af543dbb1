"""What a U-Net is made of, for spatial rank 1, 2 or 3: dimension key B *S C, channels last, S = L, H W or D H W.

Parameters are float32 whatever the `dtype` of the computation; statistics and softmax are float32 too.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets.conv import conv

INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
"""DDPM's initialization of every convolution and dense layer that does not start at zero (`nn.py` of its code)."""

ZERO = nn.initializers.zeros_init()


def time_embedding(t: Array, features: int) -> Array:
    """[sin(t w_i), cos(t w_i)] with w_i = 10000^(-i / (h - 1)), i < h = features // 2: t [B] -> [B, features], float32.

    DDPM's form of the positional encoding of "Attention is all you need", section 3.5; an odd last feature is 0.
    """
    half = features // 2
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / max(half - 1, 1)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies  # [B, h]
    return jnp.pad(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1), ((0, 0), (0, features % 2)))


def upsample_nearest(x: Array) -> Array:
    """[B, *S, C] -> [B, *(2 S), C], every position repeated; the gradient of broadcast and reshape is a plain sum."""
    for axis in range(1, x.ndim - 1):
        shape = x.shape
        x = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*shape[: axis + 1], 2, *shape[axis + 1 :]))
        x = x.reshape(*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
    return x


def dropout(key: Array, x: Array, rate: float) -> Array:
    """x / (1 - rate) where kept, else 0; each value is kept with probability 1 - rate, to 2^-16.

    Every random word decides on two values: the words cost more than all else in it.
    """
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., : x.shape[-1]]
    kept = round((1 - rate) * 2**16)
    return jnp.where(halves < kept, x * (2**16 / kept), 0).astype(x.dtype)


class Dense(nn.Module):
    """A linear map of the channels and a bias: [..., C] -> [..., features]."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = INIT

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] -> [..., features] of `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", ZERO, (self.features,), jnp.float32)
        # As a matrix: of a dot with more axes, XLA's CPU compiler transposes the gradient's operands first.
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        return (rows @ kernel.astype(self.dtype) + bias.astype(self.dtype)).reshape(*x.shape[:-1], -1)


class Conv(nn.Module):
    """A convolution of width 3 along every spatial axis, zero padded: [B, *S, C] -> [B, *(S / stride), features].

    Stride 2 pads after the end alone, as TensorFlow, and so DDPM's code, does for even sizes.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = INIT

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *(S / stride), features] of `dtype`."""
        shape = (*(3 for _ in x.shape[1:-1]), x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", ZERO, (self.features,), jnp.float32)
        return conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride) + bias.astype(self.dtype)


class GroupNorm(nn.Module):
    """Group normalization (arXiv:1803.08494): zero mean and unit variance over (*S, C / groups), then scale and bias.

    The statistics are float32 and per channel first, groups after, so no array larger than [B, C] is ever regrouped and
    the elementwise work is one multiply-add. Each channel is shifted by its own first value, to which the result is
    indifferent, so that E[x^2] - E[x]^2 loses no precision to a large mean and one pass over x is enough.
    """

    groups: int
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *S, C] of `dtype`."""
        batch, channels = x.shape[0], x.shape[-1]
        if channels % self.groups:
            raise UserError(
                f"{channels} channels cannot be normalized in {self.groups} groups; groups must divide them"
            )
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", ZERO, (channels,), jnp.float32)

        def by_group(v: Array) -> Array:
            """[B, C] -> [B, C]: the mean over each group."""
            grouped = v.reshape(batch, self.groups, -1).mean(axis=-1, keepdims=True)
            return jnp.broadcast_to(grouped, (batch, self.groups, channels // self.groups)).reshape(batch, channels)

        space = tuple(range(1, x.ndim - 1))
        shift = jax.lax.stop_gradient(x[(slice(None), *(0 for _ in space))]).astype(jnp.float32)  # [B, C]
        centred = x.astype(jnp.float32) - jnp.expand_dims(shift, space)
        mean = centred.mean(axis=space)  # [B, C], as the rest
        variance = jnp.square(centred).mean(axis=space) - jnp.square(mean)
        group_mean = by_group(mean + shift)
        spread = mean + shift - group_mean
        group_variance = by_group(jnp.maximum(variance, 0.0) + jnp.square(spread))
        a = scale * jax.lax.rsqrt(group_variance + self.epsilon)
        b = bias + (shift - group_mean) * a
        return (centred * jnp.expand_dims(a, space) + jnp.expand_dims(b, space)).astype(self.dtype)


class Upsample(nn.Module):
    """Doubles every spatial axis by nearest neighbour, then convolves: [B, *S, C] -> [B, *(2 S), C]."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *(2 S), C]."""
        return Conv(x.shape[-1], dtype=self.dtype, name="conv")(upsample_nearest(x))


class Downsample(nn.Module):
    """Halves every spatial axis by a convolution of stride 2: [B, *S, C] -> [B, *(S / 2), C]."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *(S / 2), C]; S even."""
        return Conv(x.shape[-1], stride=2, dtype=self.dtype, name="conv")(x)


class ResBlock(nn.Module):
    """DDPM's residual block: (norm, SiLU, conv), plus the embedding, (norm, SiLU, dropout, conv), plus the input.

    The second convolution starts at zero, so the block starts as its shortcut: the identity, or a dense layer where the
    number of channels changes.
    """

    channels: int
    groups: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool) -> Array:
        """x [B, *S, C], emb [B, E] -> [B, *S, channels]; randomness "dropout" where train."""
        h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm1")(x))
        h = Conv(self.channels, dtype=self.dtype, name="conv1")(h)  # [B, *S, channels]
        shift = Dense(self.channels, dtype=self.dtype, name="emb")(nn.silu(emb))
        h += jnp.expand_dims(shift, range(1, x.ndim - 1))
        h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm2")(h))
        if train and self.dropout:
            h = dropout(self.make_rng("dropout"), h, self.dropout)
        h = Conv(self.channels, dtype=self.dtype, kernel_init=ZERO, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + h


def attend(query: Array, key: Array, value: Array, implementation: str | None = None) -> Array:
    """softmax(q k^T / sqrt(D)) v, the softmax in float32: q [B, N, heads, D], k, v [B, M, heads, D] -> like q."""
    return jax.nn.dot_product_attention(query, key, value, implementation=implementation)  # type: ignore[arg-type]


class SelfAttention(nn.Module):
    """Normalizes, lets every position attend to every other, and adds the result to x: [B, *S, C] -> [B, *S, C].

    The output projection starts at zero, so the block starts as the identity.
    """

    heads: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *S, C]."""
        batch, channels = x.shape[0], x.shape[-1]
        if channels % self.heads:
            raise UserError(
                f"{channels} channels cannot be split over {self.heads} attention heads; heads must divide them"
            )
        h = GroupNorm(self.groups, dtype=self.dtype, name="norm")(x).reshape(batch, -1, channels)  # [B, N, C]

        def project(name: str) -> Array:
            y = Dense(channels, dtype=self.dtype, name=name)(h)
            return y.reshape(batch, -1, self.heads, channels // self.heads)

        h = attend(project("query"), project("key"), project("value")).reshape(x.shape)
        return x + Dense(channels, dtype=self.dtype, kernel_init=ZERO, name="out")(h)
