"""JAX's Pallas kernel of attention for TPUs, `splash_attention`, on arrays and meshes as they come.

Dimension key B batch, N queries, M keys, H heads, D features. The package is imported where it is used: it takes time,
and most programs have no attention long enough.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from diffusion_jax.nets.attention_kernels import Gradients, Kernel

LANES = 128
"""Features, and keys or queries, that a TPU's registers hold side by side."""

MOST_FEATURES = 256
"""Of a head: with more, the kernel's blocks do not fit a TPU's vector memory."""

HELD = 2**19
"""Bytes of keys that the backward pass holds in vector memory at once, of which it works on one block at a time. Twice
that, 4,096 keys of 128 features in 16 bits, does not fit a v5e's."""

FUSED = 8
"""Times that so many keys are all keys, up to which splash attention computes all gradients in one pass. That pass
writes one gradient of the queries for each of these times, and they are summed afterwards."""


def takes(q: Array, mask: Array | None) -> bool:
    """Whether splash attention takes q: at most 256 features, in which its blocks fit a TPU's vector memory, and a mask
    of keys alone.
    """
    return q.shape[-1] <= MOST_FEATURES and (mask is None or mask.shape[1:3] == (1, 1))


@functools.cache
def splash(*, interpret: bool = False) -> Kernel:
    """JAX's Pallas kernel for TPUs, `splash_attention`; with interpret, run by any platform's XLA, slowly.

    Features, queries and keys are padded to multiples of 128. A TPU kernel cannot be split by the compiler, so on the
    mesh of the context (`jax.sharding.use_abstract_mesh`) it runs in a shard_map: the batch over data x fsdp, the heads
    over tensor x context, as far as these divide them.
    """
    output = functools.partial(_splash_output, interpret)
    forward = functools.partial(_splash_forward, interpret)
    backward = functools.partial(_splash_backward, interpret)
    return Kernel(
        lambda q, k, v, mask: over_mesh(output, "qqqm", "q")(q, k, v, _of_keys(mask))[0],
        lambda q, k, v, mask: over_mesh(forward, "qqqm", "ql")(q, k, v, _of_keys(mask)),
        lambda q, k, v, mask, out, lse, g: over_mesh(backward, "qqqmqlq", "qqq")(q, k, v, _of_keys(mask), out, lse, g),
    )


def _of_keys(mask: Array | None) -> Array | None:
    return None if mask is None else mask[:, 0, 0]  # [B, M]


def over_mesh(f: Callable[..., Any], arguments: str, results: str) -> Callable[..., Any]:
    """f on each device's part; q: an array [B, N, H, D], l: [B, H, N], m: a mask [B, M] or None."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return f

    def split(*args: Any) -> Any:
        examples, _, heads, _ = args[0].shape
        over = tuple(axis for axis in ("data", "fsdp") if mesh.shape.get(axis, 1) > 1)
        batch = over if over and examples % math.prod(mesh.shape[axis] for axis in over) == 0 else None
        apart = tuple(axis for axis in ("tensor", "context") if mesh.shape.get(axis, 1) > 1)
        head = apart if apart and heads % math.prod(mesh.shape[axis] for axis in apart) == 0 else None
        specs = {
            "q": PartitionSpec(batch, None, head, None),
            "l": PartitionSpec(batch, head, None),
            "m": PartitionSpec(batch, None),
        }
        given = tuple(None if a is None else specs[kind] for kind, a in zip(arguments, args, strict=True))
        out = tuple(specs[kind] for kind in results)
        # The kernels do not say over which axes their results vary.
        return jax.shard_map(f, mesh=mesh, in_specs=given, out_specs=out, check_vma=False)(*args)

    return split


def _block(size: int) -> int:
    return next(block for block in (512, 256, LANES) if size % block == 0)


def _held(k: Array) -> int:
    """How many of the keys k [B, H, M, D] the backward pass holds at once: a multiple of a block that divides M."""
    keys, block = k.shape[2], _block(k.shape[2])
    most = max(HELD // (k.shape[3] * k.dtype.itemsize * block), 1)
    return block * next(n for n in range(most, 0, -1) if keys % (n * block) == 0)


def _splash(q: Array, k: Array, interpret: bool, *, residuals: bool = True) -> Any:
    """The kernel for q and k [B, H, N or M, D], already padded; with residuals it gives the logsumexp too."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    rows, columns = _block(queries), _block(keys)
    held = _held(k)
    fused = keys // held <= FUSED
    blocks = splash_attention_kernel.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=held,
        block_kv_dkv_compute=columns,
        block_q_dq=None if fused else rows,
        block_kv_dq=None if fused else columns,
        use_fused_bwd_kernel=fused,
    )
    everything = splash_attention_mask.FullMask((queries, keys))
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([everything] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        save_residuals=residuals,
        interpret=interpret,
    )


def _padded(a: Array) -> Array:
    """[B, N, H, D] -> [B, H, N', D'], N' and D' multiples of 128, with zeros."""
    a = jnp.swapaxes(a, 1, 2)
    return jnp.pad(a, [(0, 0), (0, 0), *((0, -n % LANES) for n in a.shape[2:])])


def _cut(a: Array, like: Array) -> Array:
    """[B, H, N', D'] -> like's [B, N, H, D] and type."""
    return jnp.swapaxes(a[:, :, : like.shape[1], : like.shape[3]], 1, 2).astype(like.dtype)


def _segments(q: Array, k: Array, mask: Array | None) -> Any:
    """Segment 1 for each query and for each key that may be attended to, padded; None where all keys may be."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    (batch, queries), keys = q.shape[:2], k.shape[1]
    if mask is None and keys % LANES == 0:
        return None
    allowed = jnp.ones((batch, keys), bool) if mask is None else mask
    return splash_attention_kernel.SegmentIds(
        jnp.ones((batch, queries + -queries % LANES), jnp.int32),
        jnp.pad(allowed, ((0, 0), (0, -keys % LANES))).astype(jnp.int32),
    )


def _any_key(mask: Array | None, a: Array) -> Array:
    """a [B, N, H, D], and 0 where no key may be attended to."""
    return a if mask is None else jnp.where(mask.any(axis=-1)[:, None, None, None], a, 0)


def _scaled(a: Array, features: int) -> Array:
    # After the padding and not before: 40 features in 32 bits lie in 128 lanes all the same.
    return (a.astype(jnp.float32) / math.sqrt(features)).astype(a.dtype)


def _splash_output(interpret: bool, q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array]:
    # The logsumexp is as large as 128 features of the output in 32 bits.
    rows, keys, values = _scaled(_padded(q), q.shape[-1]), _padded(k), _padded(v)
    run = jax.vmap(_splash(rows, keys, interpret, residuals=False))
    return (_any_key(mask, _cut(run(rows, keys, values, _segments(q, k, mask)), q)),)


def _splash_forward(interpret: bool, q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
    rows, keys, values = _scaled(_padded(q), q.shape[-1]), _padded(k), _padded(v)
    out, (logsumexp,) = jax.vmap(_splash(rows, keys, interpret))(rows, keys, values, _segments(q, k, mask))
    return _any_key(mask, _cut(out, q)), logsumexp[:, :, : q.shape[1]]


def _splash_backward(
    interpret: bool, q: Array, k: Array, v: Array, mask: Array | None, out: Array, logsumexp: Array, g: Array
) -> Gradients:
    # Not by `jax.vjp`, which runs the forward pass again to know what is given here.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    rows, keys, values = _scaled(_padded(q), q.shape[-1]), _padded(k), _padded(v)
    made = _splash(rows, keys, interpret)
    run: Any = splash_attention_kernel._splash_attention_bwd
    how = (False, *(made.kwargs[name] for name in _BACKWARD_OPTIONS))

    def backward(q: Array, k: Array, v: Array, segments: Any, out: Array, logsumexp: Array, g: Array) -> Gradients:
        kept = (q, k, v, segments, None, out, logsumexp, made.dq_mask_info, made.dkv_mask_info)
        return run(*how, kept, g)[3:6]

    logsumexp = jnp.pad(logsumexp, [(0, 0), (0, 0), (0, -q.shape[1] % LANES)])
    given = (rows, keys, values, _segments(q, k, mask), _padded(out), logsumexp, _padded(_any_key(mask, g)))
    to_q, to_k, to_v = jax.vmap(backward)(*given)
    return _cut(_scaled(to_q, q.shape[-1]), q), _cut(to_k, k), _cut(to_v, v)


_BACKWARD_OPTIONS = (
    "mask_value",
    "is_mqa",
    "block_sizes",
    "residual_checkpoint_name",
    "mask_function",
    "attn_logits_soft_cap",
    "interpret",
)
