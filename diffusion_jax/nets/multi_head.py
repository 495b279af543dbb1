"""Multi-head attention between its projections; dimension key B batch, N queries, M keys, H heads, D features."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.nets.attention import attend
from diffusion_jax.nets.context import split_heads, split_tokens
from diffusion_jax.nets.dense import INIT, Dense


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
    """Attention of x to context, with its projections: x [B, N, C], context [B, M, E] -> [B, N, C].

    - mask [B, M] is True where context may be attended to.
    - bias: whether the layers "query", "key" and "value" have one.
    - out: how the layer "out" behind the attention is initialized; None leaves that projection to the caller.
    - kernel is one of `attention.CHOICES`.

    These layers belong to the compact module that calls this.
    """
    channels = x.shape[-1]
    if context.shape == x.shape:  # self-attention, or as good as
        context = split_tokens(context)
    x = split_tokens(x)

    def project(name: str, y: Array) -> Array:
        y = Dense(channels, dtype=dtype, bias=bias, name=name)(y)
        return y.reshape(*y.shape[:2], heads, -1)

    attended = _attend(project("query", x), project("key", context), project("value", context), mask, kernel)
    attended = attended.reshape(x.shape)
    return attended if out is None else Dense(channels, dtype=dtype, kernel_init=out, name="out")(attended)


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
