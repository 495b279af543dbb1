"""What a U-Net is made of, for spatial rank 1, 2 or 3: dimension key B *S C, channels last, S = L, H W or D H W.

Parameters are float32 whatever the `dtype` of the computation; statistics and softmax are float32 too. What every layer
does is a jitted function, which is traced once for each shape and not at every layer: tracing a training step of DDPM's
CIFAR-10 net takes half the time. They are inlined, so that the program is the one without them: in a function of its
own, each gradient would be summed over the devices by itself and not with the others at once.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets.conv import conv, conv_upsampled
from diffusion_jax.nets.dense import INIT, ZERO, Dense
from diffusion_jax.nets.multi_head import multi_head
from diffusion_jax.nets.rematerialization import product, statistic

TENSOR_RULES: tuple[tuple[str, int], ...] = (
    # Megatron's pairing (arXiv:1909.08053): the first of two matrices is split by output, the second by input,
    # so that what lies between stays split and one all-reduce follows the pair.
    (r"/(conv1|emb)/(kernel|bias)$", -1),
    (r"/norm2/(scale|bias)$", -1),
    (r"/conv2/kernel$", -2),
    (r"attention[^/]*/(query|key|value)/(kernel|bias)$", -1),
    (r"attention[^/]*/out/kernel$", -2),
)
"""(path pattern, axis split over the mesh axis `tensor`) of the residual blocks and the attention here."""


def time_embedding(t: Array, features: int, form: str = "ddpm") -> Array:
    """Sines and cosines of t w_i, i < h = features // 2: t [B] -> [B, features], float32; an odd last feature is 0.

    "ddpm", of DDPM's code: [sin, cos] with w_i = 10000^(-i / (h - 1)), as in "Attention is all you need", section 3.5.
    "adm", of improved DDPM, ADM and Stable Diffusion: [cos, sin] with w_i = 10000^(-i / h).
    """
    if form not in ("ddpm", "adm"):
        raise UserError(f"the sinusoids of a time embedding are 'ddpm' or 'adm'; got {form!r}")
    half = features // 2
    last = max(half - 1, 1) if form == "ddpm" else half
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / last).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies  # [B, h]
    waves = [jnp.sin(angles), jnp.cos(angles)] if form == "ddpm" else [jnp.cos(angles), jnp.sin(angles)]
    return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, features % 2)))


def to_patches(x: Array, patch: int) -> Array:
    """[B, *S, C] -> [B, *(S / patch), patch^rank C]: the pixels of each patch as channels, rows first."""
    if patch == 1:
        return x
    if patch < 1 or any(n % patch for n in x.shape[1:-1]):
        raise UserError(f"patches of {patch} do not divide an image of {' x '.join(map(str, x.shape[1:-1]))}")
    rank = x.ndim - 2
    cells = x.reshape(x.shape[0], *(n for s in x.shape[1:-1] for n in (s // patch, patch)), x.shape[-1])
    order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return cells.transpose(order).reshape(x.shape[0], *(s // patch for s in x.shape[1:-1]), -1)


def from_patches(x: Array, patch: int) -> Array:
    """The inverse of `to_patches`: [B, *S, patch^rank C] -> [B, *(S patch), C]."""
    if patch == 1:
        return x
    rank = x.ndim - 2
    cells = x.reshape(*x.shape[:-1], *(patch,) * rank, -1)
    order = (0, *(axis for i in range(1, rank + 1) for axis in (i, rank + i)), 2 * rank + 1)
    return cells.transpose(order).reshape(x.shape[0], *(s * patch for s in x.shape[1:-1]), -1)


def average_pool(x: Array) -> Array:
    """[B, *S, C] -> [B, *(S / 2), C], S even: the mean of every cell of two positions along each axis."""
    cells = x.reshape(x.shape[0], *(n for s in x.shape[1:-1] for n in (s // 2, 2)), x.shape[-1])
    return cells.mean(axis=tuple(range(2, cells.ndim - 1, 2)))


@partial(jax.jit, static_argnums=2, inline=True)
def dropout(key: Array, x: Array, rate: float) -> Array:
    """x / (1 - rate) where kept, else 0; each value is kept with probability 1 - rate, to 2^-16.

    Every random word decides on two values: the words cost more than all else in it.
    """
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., : x.shape[-1]]
    kept = round((1 - rate) * 2**16)
    return jnp.where(halves < kept, x * (2**16 / kept), 0).astype(x.dtype)


class Conv(nn.Module):
    """A convolution of width 3 along every spatial axis, zero padded: [B, *S, C] -> [B, *(S / stride), features].

    With `upsample`, of the input doubled by nearest neighbour: [B, *S, C] -> [B, *(2 S), features].

    Stride 2 pads after the end alone, as TensorFlow, and so DDPM's code, does for even sizes; or on both sides, as ADM
    and Stable Diffusion do.
    """

    features: int
    stride: int = 1
    padding: str = "end"
    """Of stride 2: "end" or "both"."""
    upsample: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = INIT

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *(S / stride), features] of `dtype`."""
        shape = (*(3 for _ in x.shape[1:-1]), x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", ZERO, (self.features,), jnp.float32)
        if self.padding not in ("end", "both"):
            raise UserError(f"a convolution of stride 2 pads the 'end' or 'both' sides; got {self.padding!r}")
        if self.stride == 2 and self.padding == "both":
            # `conv` adds the zero after the end, which an even size then leaves unread.
            x = jnp.pad(x, ((0, 0), *((1, 0) for _ in x.shape[1:-1]), (0, 0)))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        out = conv_upsampled(x, kernel) if self.upsample else conv(x, kernel, self.stride)
        return product(out + bias.astype(self.dtype))


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
        channels = x.shape[-1]
        if channels % self.groups:
            raise UserError(
                f"{channels} channels cannot be normalized in {self.groups} groups; groups must divide them"
            )
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", ZERO, (channels,), jnp.float32)
        return group_norm(x, scale, bias, self.groups, self.epsilon, self.dtype)


@partial(jax.jit, static_argnums=(3, 4, 5), inline=True)
def group_norm(x: Array, scale: Array, bias: Array, groups: int, epsilon: float, dtype: DTypeLike) -> Array:
    """`GroupNorm` of x [B, *S, C] with scale and bias [C]: [B, *S, C] of dtype."""
    batch, channels = x.shape[0], x.shape[-1]

    def by_group(v: Array) -> Array:
        """[B, C] -> [B, C]: the mean over each group."""
        grouped = v.reshape(batch, groups, -1).mean(axis=-1, keepdims=True)
        return jnp.broadcast_to(grouped, (batch, groups, channels // groups)).reshape(batch, channels)

    space = tuple(range(1, x.ndim - 1))
    shift = jax.lax.stop_gradient(x[(slice(None), *(0 for _ in space))]).astype(jnp.float32)  # [B, C]
    centred = x.astype(jnp.float32) - jnp.expand_dims(shift, space)
    mean = centred.mean(axis=space)  # [B, C], as the rest
    variance = jnp.square(centred).mean(axis=space) - jnp.square(mean)
    group_mean = by_group(mean + shift)
    spread = mean + shift - group_mean
    group_variance = by_group(jnp.maximum(variance, 0.0) + jnp.square(spread))
    a = statistic(scale * jax.lax.rsqrt(group_variance + epsilon))
    b = statistic(bias + (shift - group_mean) * a)
    return (centred * jnp.expand_dims(a, space) + jnp.expand_dims(b, space)).astype(dtype)


class Upsample(nn.Module):
    """Doubles every spatial axis by nearest neighbour, then convolves: [B, *S, C] -> [B, *(2 S), C]."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array | None = None, train: bool = False) -> Array:
        """[B, *S, C] -> [B, *(2 S), C]; emb and train are for the ResBlock that may stand in its place."""
        return Conv(x.shape[-1], upsample=True, dtype=self.dtype, name="conv")(x)


class Downsample(nn.Module):
    """Halves every spatial axis by a convolution of stride 2: [B, *S, C] -> [B, *(S / 2), C]."""

    padding: str = "end"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array | None = None, train: bool = False) -> Array:
        """[B, *S, C] -> [B, *(S / 2), C]; S even; emb and train are for the ResBlock that may stand in its place."""
        return Conv(x.shape[-1], stride=2, padding=self.padding, dtype=self.dtype, name="conv")(x)


class ResBlock(nn.Module):
    """DDPM's residual block: (norm, SiLU, conv), plus the embedding, (norm, SiLU, dropout, conv), plus the input.

    The second convolution starts at zero, so the block starts as its shortcut: the identity, or a dense layer where the
    number of channels changes. ADM (arXiv:2105.05233, section 3) adds two options: adaptive group norm, where the
    embedding scales and shifts what the second norm gives, h (1 + scale) + shift, and resampling inside the block.
    """

    channels: int
    groups: int
    dropout: float = 0.0
    scale_shift: bool = False
    resample: Callable[[Array], Array] | None = None
    """Of both branches, before the first convolution: `average_pool` or `upsample_nearest`."""
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool) -> Array:
        """x [B, *S, C], emb [B, E] -> [B, *S', channels]; randomness "dropout" where train."""

        def norm(name: str, x: Array) -> Array:
            return GroupNorm(self.groups, self.epsilon, dtype=self.dtype, name=name)(x)

        def project(features: int) -> Array:
            y = Dense(features, dtype=self.dtype, name="emb")(nn.silu(emb))
            return jnp.expand_dims(y, range(1, x.ndim - 1))

        h = nn.silu(norm("norm1", x))
        if self.resample:
            x, h = self.resample(x), self.resample(h)
        h = Conv(self.channels, dtype=self.dtype, name="conv1")(h)  # [B, *S', channels]
        if self.scale_shift:
            scale, shift = jnp.split(project(2 * self.channels), 2, axis=-1)
            h = norm("norm2", h) * (1 + scale) + shift
        else:
            h = norm("norm2", h + project(self.channels))
        h = nn.silu(h)
        if train and self.dropout:
            h = dropout(self.make_rng("dropout"), h, self.dropout)
        h = Conv(self.channels, dtype=self.dtype, kernel_init=ZERO, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + h


def attention_heads(channels: int, heads: int, head_channels: int = 0) -> int:
    """The number of heads, `heads` or channels / head_channels; UserError where channels cannot be split so."""
    if head_channels:
        if channels % head_channels:
            raise UserError(
                f"{channels} channels cannot be split into attention heads of {head_channels}; "
                "head_channels must divide them"
            )
        return channels // head_channels
    if channels % heads:
        raise UserError(f"{channels} channels cannot be split over {heads} attention heads; heads must divide them")
    return heads


class SelfAttention(nn.Module):
    """Normalizes, lets every position attend to every other, and adds the result to x: [B, *S, C] -> [B, *S, C].

    The output projection starts at zero, so the block starts as the identity.
    """

    heads: int
    groups: int
    epsilon: float = 1e-6
    kernel: str = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *S, C]."""
        batch, channels = x.shape[0], x.shape[-1]
        heads = attention_heads(channels, self.heads)
        h = GroupNorm(self.groups, self.epsilon, dtype=self.dtype, name="norm")(x)
        h = h.reshape(batch, -1, channels)  # [B, N, C]
        h = multi_head(h, h, heads, out=ZERO, kernel=self.kernel, dtype=self.dtype)
        return x + h.reshape(x.shape)
