"""Attention without an array of N x M logits; dimension key B batch, N queries, M keys, H heads, D features of a head.

A kernel is three functions. Queries are [B, N, H, D], keys and values [B, M, H, D]; the mask, None or
[B, 1 or H, 1 or N, M], is True where a query may attend to a key. The backward pass computes the probabilities again,
from the logarithm of the softmax's denominator, as FlashAttention does (arXiv:2205.14135, algorithms 2 and 4).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

Gradients = tuple[Array, Array, Array]
"""Cotangents of queries, keys and values, each like what it is of."""


class Kernel(NamedTuple):
    """One way to compute attention and its gradient; a query that may attend to no key gives 0."""

    primal: Callable[[Array, Array, Array, Array | None], Array]
    """(q, k, v, mask) -> output, like q, where nothing is differentiated."""
    forward: Callable[[Array, Array, Array, Array | None], tuple[Array, Array]]
    """(q, k, v, mask) -> output, like q, and logsumexp of the logits [B, H, N] in float32, which need not be right
    where the kernel's own backward pass does not read it."""
    backward: Callable[[Array, Array, Array, Array | None, Array, Array, Array], Gradients]
    """(q, k, v, mask, output, logsumexp, cotangent of the output) -> cotangents of q, k and v."""


CHUNK = 256
"""Keys that the chunked kernel attends to at once: of 128, 256 and 512 the best of both sizes tried on CPU."""

MASKED_LOGIT = -0.7 * float(jnp.finfo(jnp.float32).max)
"""The logit of a key that is not attended to: its exponential is 0, and its difference from any other is finite."""


def exponentials(logits: Array, subtracted: Array, mask: Array | None) -> Array:
    """exp(logits - subtracted), and 0 where the mask, if any, is False; all of shapes that broadcast.

    Masked logits alone do not give 0 for a query without any key: all of its logits are equal, so exponentials are 1.
    """
    p = jnp.exp(logits - subtracted)
    return p if mask is None else jnp.where(mask, p, 0)


def denominator_or_one(denominator: Array) -> Array:
    """The softmax's denominator, and 1 for a query without any key, whose output is then 0 and not 0 / 0."""
    return jnp.where(denominator > 0, denominator, 1)


def _chunks(a: Array, axis: int) -> Array:
    """The axis of M keys split into equal chunks, padded with zeros: [..., M, ...] -> [chunks, ..., chunk, ...]."""
    keys = a.shape[axis]
    count = -(-keys // CHUNK)
    size = -(-keys // count)
    a = jnp.pad(a, [(0, count * size - keys if i == axis else 0) for i in range(a.ndim)])
    return jnp.moveaxis(a.reshape(*a.shape[:axis], count, size, *a.shape[axis + 1 :]), axis, 0)


def _chunked_keys(k: Array, v: Array, mask: Array | None) -> tuple[Array, Array, Array | None]:
    """k and v as [chunks, B, H, chunk, D], and the mask as [chunks, B, 1 or H, 1 or N, chunk]."""
    keys = k.shape[1]
    count = -(-keys // CHUNK)
    if mask is None and keys % count:
        mask = jnp.ones((1, 1, 1, keys), bool)  # its padding is False
    k, v = (_chunks(jnp.swapaxes(a, 1, 2), 2) for a in (k, v))
    return k, v, None if mask is None else _chunks(mask, 3)


def _logits(q: Array, k: Array, mask: Array | None) -> Array:
    """q [B, H, N, D], k [B, H, M, D] -> [B, H, N, M], float32."""
    logits = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    return logits if mask is None else jnp.where(mask, logits, MASKED_LOGIT)


def chunked_forward(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
    """As `Kernel.forward`, by a scan over chunks of keys with a running maximum; differentiable in both modes."""
    batch, queries, heads, features = q.shape
    rows = jnp.swapaxes(q, 1, 2)  # [B, H, N, D]

    def step(carry: tuple[Array, Array, Array], chunk: Any) -> tuple[tuple[Array, Array, Array], None]:
        numerator, denominator, maximum = carry
        k, v, mask = chunk
        logits = _logits(rows, k, mask)
        # The result does not depend on what is subtracted, so neither do its derivatives.
        higher = lax.stop_gradient(jnp.maximum(maximum, logits.max(axis=-1)))
        p, rescale = exponentials(logits, higher[..., None], mask), jnp.exp(maximum - higher)
        attended = jnp.einsum("bhnm,bhmd->bhnd", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (numerator * rescale[..., None] + attended, denominator * rescale + p.sum(axis=-1), higher), None

    zero = jnp.zeros((batch, heads, queries), jnp.float32)
    start = (jnp.zeros((batch, heads, queries, features), jnp.float32), zero, zero + MASKED_LOGIT)
    (numerator, denominator, maximum), _ = lax.scan(step, start, _chunked_keys(k, v, mask))
    denominator = denominator_or_one(denominator)
    out = jnp.swapaxes(numerator / denominator[..., None], 1, 2).astype(q.dtype)
    return out, maximum + jnp.log(denominator)


def _chunked_backward(
    q: Array, k: Array, v: Array, mask: Array | None, out: Array, logsumexp: Array, dout: Array
) -> Gradients:
    """As `Kernel.backward`: algorithm 4, whose names dq, dk, dv and dp are cotangents and D_i is `delta`."""
    rows, dout_rows = jnp.swapaxes(q, 1, 2), jnp.swapaxes(dout, 1, 2)  # [B, H, N, D]
    delta = jnp.einsum("bnhd,bnhd->bhn", dout.astype(jnp.float32), out.astype(jnp.float32))
    scale = 1 / math.sqrt(q.shape[-1])

    def step(dq: Array, chunk: Any) -> tuple[Array, tuple[Array, Array]]:
        k, v, mask = chunk
        p = exponentials(_logits(rows, k, mask), logsumexp[..., None], mask)
        dv = jnp.einsum("bhnm,bhnd->bhmd", p.astype(dout.dtype), dout_rows)
        dp = jnp.einsum("bhnd,bhmd->bhnm", dout_rows, v, preferred_element_type=jnp.float32)
        dlogits = (p * (dp - delta[..., None]) * scale).astype(q.dtype)
        more = jnp.einsum("bhnm,bhmd->bhnd", dlogits, k, preferred_element_type=jnp.float32)
        return dq + more, (jnp.einsum("bhnm,bhnd->bhmd", dlogits, rows), dv)

    dq, by_chunk = lax.scan(step, jnp.zeros(rows.shape, jnp.float32), _chunked_keys(k, v, mask))
    dk, dv = (  # [chunks, B, H, chunk, D] -> [B, M, H, D]
        jnp.moveaxis(a, (0, 3), (1, 2)).reshape(a.shape[1], -1, a.shape[2], a.shape[4])[:, : k.shape[1]]
        for a in by_chunk
    )
    return jnp.swapaxes(dq, 1, 2).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


CHUNKED = Kernel(lambda *args: chunked_forward(*args)[0], chunked_forward, _chunked_backward)
"""XLA's own operations on one chunk of keys after another: any platform, type, mask and size."""


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def _cudnn_forward(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
    return _cudnn(q, k, v), jnp.zeros((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)


def _cudnn_backward(
    q: Array, k: Array, v: Array, mask: Array | None, out: Array, logsumexp: Array, dout: Array
) -> Gradients:
    # jax hands out cuDNN's logsumexp in 16 bits only, so its forward pass runs again here.
    return jax.vjp(_cudnn, q, k, v)[1](dout)


CUDNN = Kernel(lambda q, k, v, mask: _cudnn(q, k, v), _cudnn_forward, _cudnn_backward)
"""cuDNN's attention, for NVIDIA GPUs: `cudnn_takes` says of what."""


def cudnn_takes(q: Array, mask: Array | None) -> bool:
    """Whether cuDNN is there and takes q: 16 bits, a multiple of 8 features and at most 128, here without a mask.

    It is asked when a program is traced, so a host without a GPU plans none for one.
    """
    if mask is not None or q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] % 8 or q.shape[-1] > 128:
        return False
    return jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version.lower()
