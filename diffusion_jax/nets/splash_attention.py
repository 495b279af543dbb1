"""JAX's Pallas kernel of attention for TPUs, `splash_attention`, on arrays and meshes as they come.

Dimension key B batch, N queries, M keys, H heads, D features of a head. Queries and keys are padded to multiples of
128. The package is imported where it is used: it takes time, and most programs have no attention long enough.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.nets.attention_kernels import Gradients, Kernel
from diffusion_jax.nets.tpu_kernels import LANES, block_size, is_of_keys, kernel_over_mesh, pad, padded, scaled

MOST_FEATURES = 256
"""Of a head: with more, the kernel's blocks do not fit a TPU's vector memory."""

HELD = 2**19
"""Bytes of keys that the backward pass holds in vector memory at once, of which it works on one block at a time. Twice
that, 4,096 keys of 128 features in 16 bits, does not fit a v5e's."""

FUSED = 8
"""Parts of the keys that the backward pass holds one after another, up to which splash attention computes all gradients
in one pass. That pass writes one gradient of the queries for each part, and they are summed afterwards."""


def takes(q: Array, mask: Array | None) -> bool:
    """Whether splash attention takes q [B, N, H, D]: few enough features, and a mask of keys alone."""
    return q.shape[-1] <= MOST_FEATURES and is_of_keys(mask)


@functools.cache
def splash(*, interpret: bool = False) -> Kernel:
    """The kernel, split over the mesh of the context."""
    return kernel_over_mesh(_primal, _forward, _backward, interpret)


def _held(k: Array) -> int:
    """How many of the keys k [B, H, M, D] the backward pass holds at once: a multiple of a block that divides M."""
    keys, block = k.shape[2], block_size(k.shape[2])
    most = max(HELD // (padded(k.shape[3]) * k.dtype.itemsize * block), 1)
    return block * next(n for n in range(most, 0, -1) if keys % (n * block) == 0)


def _kernel(q: Array, k: Array, interpret: bool, *, logsumexp: bool = True) -> Any:
    """JAX's kernel for one example of q and k [B, H, N or M, D], already padded; it may give the logsumexp too."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    query_block, key_block, held = block_size(queries), block_size(keys), _held(k)
    fused = keys // held <= FUSED
    sizes = splash_attention_kernel.BlockSizes(
        block_q=query_block,
        block_kv=key_block,
        block_q_dkv=query_block,
        block_kv_dkv=held,
        block_kv_dkv_compute=key_block,
        block_q_dq=None if fused else query_block,
        block_kv_dq=None if fused else key_block,
        use_fused_bwd_kernel=fused,
    )
    everything = splash_attention_mask.FullMask((queries, keys))
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([everything] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        save_residuals=logsumexp,
        interpret=interpret,
    )


def _pack(a: Array) -> Array:
    """[B, N, H, D] -> [B, H, N padded, D]."""
    # Features are left as they are: memory has them in 128 lanes anyway, and padding would write and read them twice.
    return pad(jnp.swapaxes(a, 1, 2), 2)


def _pack_all(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Queries, scaled, keys and values, packed."""
    return scaled(_pack(q), q.shape[-1]), _pack(k), _pack(v)


def _unpack(a: Array, like: Array) -> Array:
    """[B, H, N padded, D] -> like's [B, N, H, D] and type."""
    return jnp.swapaxes(a[:, :, : like.shape[1]], 1, 2).astype(like.dtype)


def _segments(q: Array, k: Array, mask: Array | None) -> Any:
    """Segment 1 for each query and for each key that may be attended to, padded; None where all keys may be."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    (batch, queries), keys = q.shape[:2], k.shape[1]
    if mask is None and keys % LANES == 0:
        return None
    allowed = jnp.ones((batch, keys), bool) if mask is None else mask
    return splash_attention_kernel.SegmentIds(
        jnp.ones((batch, padded(queries)), jnp.int32), pad(allowed, 1).astype(jnp.int32)
    )


def _zero_without_keys(a: Array, mask: Array | None) -> Array:
    """a [B, N, H, D], and 0 in the examples where the mask [B, M], if any, has no key."""
    return a if mask is None else jnp.where(mask.any(axis=-1)[:, None, None, None], a, 0)


def _primal(interpret: bool, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    # Without the logsumexp, which is as large as 128 features of the output in 32 bits.
    packed = _pack_all(q, k, v)
    run = jax.vmap(_kernel(*packed[:2], interpret, logsumexp=False))
    return _zero_without_keys(_unpack(run(*packed, _segments(q, k, mask)), q), mask)


def _forward(interpret: bool, q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
    packed = _pack_all(q, k, v)
    out, (logsumexp,) = jax.vmap(_kernel(*packed[:2], interpret))(*packed, _segments(q, k, mask))
    return _zero_without_keys(_unpack(out, q), mask), logsumexp[:, :, : q.shape[1]]


def _backward(
    interpret: bool, q: Array, k: Array, v: Array, mask: Array | None, out: Array, logsumexp: Array, dout: Array
) -> Gradients:
    # Not by `jax.vjp`, which runs the forward pass again to know what is given here.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    packed = _pack_all(q, k, v)
    kernel = _kernel(*packed[:2], interpret)
    run: Any = splash_attention_kernel._splash_attention_bwd
    options = (False, *(kernel.kwargs[name] for name in _BACKWARD_OPTIONS))

    def of_example(q: Array, k: Array, v: Array, segments: Any, out: Array, logsumexp: Array, dout: Array) -> Gradients:
        residuals = (q, k, v, segments, None, out, logsumexp, kernel.dq_mask_info, kernel.dkv_mask_info)
        return run(*options, residuals, dout)[3:6]

    logsumexp = pad(logsumexp, 2)
    given = (*packed, _segments(q, k, mask), _pack(out), logsumexp, _pack(_zero_without_keys(dout, mask)))
    dq, dk, dv = jax.vmap(of_example)(*given)
    return _unpack(scaled(dq, q.shape[-1]), q), _unpack(dk, k), _unpack(dv, v)


_BACKWARD_OPTIONS = (
    "mask_value",
    "is_mqa",
    "block_sizes",
    "residual_checkpoint_name",
    "mask_function",
    "attn_logits_soft_cap",
    "interpret",
)
