"""Multi-head attention between its projections; dimension key B batch, N queries, M keys, H heads, D features of one.

TPU kernels of attention work on a multiple of 128 features. Where they may run, the projections write and read heads of
that width at once: zeros are added to their kernels, which are small, and not to what they give.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from diffusion_jax.nets.attention import attend, splash_is_possible
from diffusion_jax.nets.context import split_heads, split_tokens
from diffusion_jax.nets.dense import INIT, Parameters, linear
from diffusion_jax.nets.rematerialization import product
from diffusion_jax.nets.splash_attention import LANES


class Projections(NamedTuple):
    """(kernel, bias or None) of each; kernels are [width, H D], that of out [H D, features]."""

    query: tuple[Array, Array | None]
    key: tuple[Array, Array | None]
    value: tuple[Array, Array | None]
    out: tuple[Array, Array | None] | None


def multi_head(
    x: Array,
    context: Array,
    heads: int,
    *,
    mask: Array | None = None,
    bias: bool = True,
    out: nn.initializers.Initializer | None = INIT,
    kernel: str = "auto",
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """What x attends to in context, projected: x [B, N, C], context [B, M, E] -> [B, N, C].

    The mask [B, M] is True where context may be attended to; bias says whether query, key and value have one; out is
    how the projection of the result starts, None leaves that to the caller; the kernel is one of `attention.CHOICES`.
    The layers "query", "key", "value" and "out" belong to the compact module that calls this.
    """
    channels = x.shape[-1]
    if context.shape == x.shape:  # self-attention, or as good as
        context = split_tokens(context)
    x = split_tokens(x)

    def parameters(name: str, width: int) -> tuple[Array, Array | None]:
        return Parameters(channels, bias=bias, name=name)(width)

    widths = {"query": channels, "key": context.shape[-1], "value": context.shape[-1]}
    last = None if out is None else Parameters(channels, out, name="out")(channels)
    projections = Projections(**{name: parameters(name, width) for name, width in widths.items()}, out=last)

    def plain(x: Array, context: Array, mask: Array | None, by: Projections) -> Array:
        return _attended(x, context, mask, by, heads, kernel, dtype)

    def padded(x: Array, context: Array, mask: Array | None, by: Projections) -> Array:
        return _attended_padded(x, context, mask, by, heads, kernel, dtype)

    given = (x, context, mask, projections)
    narrow = last is not None and (channels // heads) % LANES
    if narrow and splash_is_possible((x.shape[1], context.shape[1]), channels // heads, kernel):
        return lax.platform_dependent(*given, tpu=padded, default=plain)
    return plain(*given)


def _attend(q: Array, k: Array, v: Array, mask: Array | None, kernel: str) -> Array:
    """`attend` with a mask of keys [B, M], split over the mesh axis `context` where keys are as many as queries.

    Otherwise, as with the keys of a text, each device has all keys and its own queries.
    """
    keys = None if mask is None else mask[:, None, None]  # [B, 1, 1, M]
    if q.shape[1] != k.shape[1]:
        return attend(q, k, v, keys, kernel=kernel)
    # Split by tokens first: or the compiler projects all tokens on every device, to the heads of that device.
    q, k, v = (split_heads(split_tokens(a)) for a in (q, k, v))
    return split_tokens(split_heads(attend(q, k, v, keys, kernel=kernel)))


def _attended(
    x: Array, context: Array, mask: Array | None, by: Projections, heads: int, kernel: str, dtype: DTypeLike
) -> Array:
    def project(y: Array, weights: tuple[Array, Array | None]) -> Array:
        y = linear(y, *weights, dtype)
        return y.reshape(*y.shape[:2], heads, -1)

    projected = project(x, by.query), project(context, by.key), project(context, by.value)
    attended = _attend(*projected, mask, kernel).reshape(x.shape)
    return attended if by.out is None else linear(attended, *by.out, dtype)


def _attended_padded(
    x: Array, context: Array, mask: Array | None, by: Projections, heads: int, kernel: str, dtype: DTypeLike
) -> Array:
    features = x.shape[-1] // heads
    more = -features % LANES
    scale = math.sqrt((features + more) / features)  # for attention divides by the root of all its features

    def project(y: Array, weights: tuple[Array, Array | None], scale: float = 1.0) -> Array:
        wide, bias = weights
        wide = jnp.pad(scale * wide.astype(jnp.float32).reshape(-1, heads, features), ((0, 0), (0, 0), (0, more)))
        y = jnp.einsum("bnc,chd->bnhd", y.astype(dtype), wide.astype(dtype))
        if bias is not None:
            y += jnp.pad(scale * bias.reshape(heads, features), ((0, 0), (0, more))).astype(dtype)
        return product(y)

    projected = project(x, by.query, scale), project(context, by.key), project(context, by.value)
    attended = _attend(*projected, mask, kernel)  # [B, N, H, D and zeros]
    assert by.out is not None
    wide, bias = by.out
    wide = jnp.pad(wide.reshape(heads, features, -1), ((0, 0), (0, more), (0, 0)))
    out = jnp.einsum("bnhd,hdc->bnc", attended, wide.astype(dtype))
    return product(out if bias is None else out + bias.astype(dtype))
