"""A Pallas kernel of attention for TPUs that reads and writes heads side by side, as projections give them.

Dimension key B batch, N queries, M keys, H heads, D features of a head, C = H D channels, W lanes of a head's window.

A TPU lays an array's last axis in lanes of 128. On an axis of its own a head of 40 features takes three times its bytes
in memory; in [B, N, C] it takes what it has. Here a block of all channels is read at once, and each head works on its
window, the one or two widths of 128 lanes that hold it, with zeros in place of its neighbours. For the matrix unit that
is the work of a head that is padded to 128 or 256.

Logits are held as [keys, queries], so that the statistics of the softmax are rows. The keys of an example are all in
vector memory, so one pass gives all gradients and writes each once; `takes` says up to how many that is. The algorithms
are FlashAttention's (arXiv:2205.14135, algorithms 1 and 4), and so are the names dq, dk, dv and dp of cotangents.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from diffusion_jax.nets.attention_kernels import MASKED_LOGIT, Gradients, Kernel, denominator_or_one, exponentials
from diffusion_jax.nets.tpu_kernels import (
    LANES,
    GridCall,
    Operand,
    block_size,
    cost,
    dot,
    in_lanes,
    is_of_keys,
    kernel_over_mesh,
    pad,
    padded,
    scaled,
)

HELD = 54 * 2**20
"""Bytes of vector memory, at most, for an example's keys and values, the gradients of these and their sums. The rest of
`tpu_kernels.VECTOR_MEMORY` is for the blocks of queries and of logits."""


def takes(q: Array, k: Array, mask: Array | None) -> bool:
    """Whether this kernel takes q and k, [B, N or M, H, D]: keys that fit in `HELD`, and a mask of keys alone."""
    held = padded(k.shape[1]) * padded(k.shape[2] * k.shape[3]) * (4 * q.dtype.itemsize + 2 * 4)
    return held <= HELD and is_of_keys(mask)


@functools.cache
def packed(*, interpret: bool = False) -> Kernel:
    """The kernel, split over the mesh of the context."""
    return kernel_over_mesh(_primal, _forward, _backward, interpret)


def _primal(interpret: bool, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    sizes = _Sizes.of(q, k, mask)
    call = sizes.call("packed_attention", [sizes.of_q, sizes.of_k, sizes.of_k], [sizes.of_q])
    arrays = *sizes.columns(mask), *map(sizes.pack, (q, k, v))
    (out,) = call.run(functools.partial(_attend, sizes=sizes), *arrays, interpret=interpret)
    return sizes.unpack(out, q)


def _forward(interpret: bool, q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
    sizes = _Sizes.of(q, k, mask)
    call = sizes.call("packed_attention", [sizes.of_q, sizes.of_k, sizes.of_k], [sizes.of_q, sizes.of_logsumexp])
    arrays = *sizes.columns(mask), *map(sizes.pack, (q, k, v))
    out, logsumexp = call.run(functools.partial(_attend, sizes=sizes), *arrays, interpret=interpret)
    return sizes.unpack(out, q), logsumexp[:, :, : q.shape[1]]


def _backward(
    interpret: bool, q: Array, k: Array, v: Array, mask: Array | None, out: Array, logsumexp: Array, dout: Array
) -> Gradients:
    sizes = _Sizes.of(q, k, mask)
    inputs = [sizes.of_q, sizes.of_k, sizes.of_k, sizes.of_q, sizes.of_logsumexp, sizes.of_q]
    call = sizes.call("packed_attention_gradients", inputs, [sizes.of_q, sizes.of_k, sizes.of_k], gradients=True)
    logsumexp = pad(logsumexp, 2)
    arrays = *sizes.columns(mask), *map(sizes.pack, (q, k, v, out)), logsumexp, sizes.pack(dout)
    dq, dk, dv = call.run(functools.partial(_gradients, sizes=sizes), *arrays, interpret=interpret)
    return sizes.unpack(dq, q), sizes.unpack(dk, k), sizes.unpack(dv, v)


class _Sizes(NamedTuple):
    """The sizes of one attention, and its arrays as the kernel has them: queries and keys are padded to lanes."""

    batch: int
    queries: int
    keys: int
    heads: int
    features: int
    dtype: jnp.dtype
    masked: bool

    @classmethod
    def of(cls, q: Array, k: Array, mask: Array | None) -> Self:
        batch, queries, heads, features = q.shape
        return cls(batch, queries, k.shape[1], heads, features, q.dtype, mask is not None)

    @property
    def channels(self) -> int:
        return self.heads * self.features

    @property
    def query_block(self) -> int:
        return block_size(padded(self.queries))

    @property
    def key_block(self) -> int:
        return block_size(padded(self.keys))

    def pack(self, a: Array) -> Array:
        """[B, N, H, D] -> [B, N padded, C]."""
        return pad(a.reshape(*a.shape[:2], self.channels), 1)

    def unpack(self, a: Array, like: Array) -> Array:
        """[B, N padded, C] -> like's [B, N, H, D]."""
        return a[:, : like.shape[1]].reshape(like.shape)

    def columns(self, mask: Array | None) -> list[Array]:
        """[B, M] -> [[B, M padded, 1]] of 0 and 1, or [] where there is no mask."""
        return [] if mask is None else [pad(mask, 1).astype(jnp.float32)[..., None]]

    @property
    def of_q(self) -> Operand:
        """Queries, or the output: [B, N padded, C], by blocks of queries."""
        array = jax.ShapeDtypeStruct((self.batch, padded(self.queries), self.channels), self.dtype)
        return Operand(array, pl.BlockSpec((1, self.query_block, self.channels), lambda example, i: (example, i, 0)))

    @property
    def of_k(self) -> Operand:
        """Keys, or values: [B, M padded, C], all of an example at once."""
        array = jax.ShapeDtypeStruct((self.batch, padded(self.keys), self.channels), self.dtype)
        block = pl.BlockSpec(  # one buffer: these move once an example, and two would leave half the room
            (1, *array.shape[1:]), lambda example, i: (example, 0, 0), pipeline_mode=pl.Buffered(1)
        )
        return Operand(array, block)

    @property
    def of_logsumexp(self) -> Operand:
        """[B, H, N padded], by blocks of queries."""
        array = jax.ShapeDtypeStruct((self.batch, self.heads, padded(self.queries)), jnp.float32)
        return Operand(array, pl.BlockSpec((1, self.heads, self.query_block), lambda example, i: (example, 0, i)))

    @property
    def of_mask(self) -> Operand:
        """[B, M padded, 1], all of an example at once."""
        array = jax.ShapeDtypeStruct((self.batch, padded(self.keys), 1), jnp.float32)
        return Operand(array, pl.BlockSpec((1, *array.shape[1:]), lambda example, i: (example, 0, 0)))

    def call(
        self, name: str, inputs: Sequence[Operand], outputs: Sequence[Operand], *, gradients: bool = False
    ) -> GridCall:
        """The call for each block of queries of each example; the mask, if any, comes before the inputs.

        With gradients it has five matrix products, not two, and scratch for the sums of dk and dv over the queries.
        """
        inputs = [self.of_mask] * self.masked + list(inputs)
        logits = self.batch * self.heads * self.queries * self.keys
        sums = jax.ShapeDtypeStruct((padded(self.keys), self.channels), jnp.float32)
        return GridCall(
            name,
            grid=(self.batch, padded(self.queries) // self.query_block),
            semantics=("parallel", "arbitrary"),
            inputs=inputs,
            outputs=outputs,
            cost=cost(
                flops=2 * (5 if gradients else 2) * logits * self.features,
                transcendentals=logits,
                moved=[in_lanes(operand.array) for operand in (*inputs, *outputs)],
            ),
            scratch=[sums, sums] if gradients else [],
        )


class _Head(NamedTuple):
    """Where a head's features lie: in its window of the channels, from the lane `first` of the window on."""

    number: int
    window: slice  # from a multiple of 128 on
    first: int
    features: int

    def alone(self, a: Array) -> Array:
        """a [N, W], with 0 in the lanes of other heads."""
        return jnp.where(self._lanes(a), a, jnp.zeros_like(a))

    def write(self, ref: Any, a: Array) -> None:
        """Puts this head's lanes of a [N, W] into the block ref [1, N, C]."""
        there = ref[0, :, self.window]
        ref[0, :, self.window] = jnp.where(self._lanes(a), a.astype(there.dtype), there)

    def _lanes(self, a: Array) -> Array:
        lane = lax.broadcasted_iota(jnp.int32, a.shape, 1) - self.first
        return (lane >= 0) & (lane < self.features)


def _heads(sizes: _Sizes) -> list[_Head]:
    found = []
    for number in range(sizes.heads):
        start, stop = number * sizes.features, (number + 1) * sizes.features
        window = slice(start // LANES * LANES, min(padded(stop), sizes.channels))
        found.append(_Head(number, window, start - window.start, sizes.features))
    return found


class _KeyBlocks:
    """The keys of an example, of which a loop takes one block after another."""

    def __init__(self, mask: Any, sizes: _Sizes):
        self._mask, self._keys = mask, sizes.keys
        self.size, self.count = sizes.key_block, padded(sizes.keys) // sizes.key_block

    def rows(self, i: Array) -> Any:
        """The rows of block i."""
        return pl.ds(pl.multiple_of(i * self.size, self.size), self.size)

    def logits(self, i: Array, k: Array, q: Array) -> tuple[Array, Array | None]:
        """k [block, W] and q [N, W] -> (logits [block, N], the mask [block, 1] of their exponentials, if any)."""
        logits = dot(k, q, (1, 1))
        if self._mask is not None:
            valid = self._mask[0, self.rows(i), :] > 0
            return jnp.where(valid, logits, MASKED_LOGIT), valid
        if self._keys < self.size * self.count:
            row = lax.broadcasted_iota(jnp.int32, (self.size, 1), 0) + i * self.size
            logits = jnp.where(row < self._keys, logits, MASKED_LOGIT)
        return logits, None


def _attend(*refs: Any, sizes: _Sizes) -> None:
    """The output of a block of queries, and where there is a ref for it the logsumexp: algorithm 1."""
    q_ref, k_ref, v_ref, out_ref, *logsumexp_ref = refs[sizes.masked :]
    keys = _KeyBlocks(refs[0] if sizes.masked else None, sizes)
    queries = q_ref.shape[1]
    for head in _heads(sizes):
        q = head.alone(scaled(q_ref[0, :, head.window], sizes.features))

        def block(i: Array, carry: tuple[Array, Array, Array], q: Array = q, head: _Head = head) -> Any:
            numerator, denominator, maximum = carry
            k, v = k_ref[0, keys.rows(i), head.window], v_ref[0, keys.rows(i), head.window]
            logits, valid = keys.logits(i, k, q)
            higher = jnp.maximum(maximum, logits.max(axis=0, keepdims=True))
            p, rescale = exponentials(logits, higher, valid), jnp.exp(maximum - higher)
            attended = dot(v, p.astype(v.dtype), (0, 0))  # [W, N]
            return numerator * rescale + attended, denominator * rescale + p.sum(axis=0, keepdims=True), higher

        zero = jnp.zeros((1, queries), jnp.float32)
        start = (jnp.zeros((q.shape[1], queries), jnp.float32), zero, zero + MASKED_LOGIT)
        numerator, denominator, maximum = lax.fori_loop(0, keys.count, block, start)
        denominator = denominator_or_one(denominator)
        head.write(out_ref, (numerator / denominator).T)
        for ref in logsumexp_ref:
            ref[0, head.number, :] = (maximum + jnp.log(denominator))[0]


def _gradients(*refs: Any, sizes: _Sizes) -> None:
    """dq of a block of queries, and after the last block dk and dv, which are summed over the queries: algorithm 4."""
    q_ref, k_ref, v_ref, out_ref, logsumexp_ref, dout_ref, dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = refs[sizes.masked :]
    keys = _KeyBlocks(refs[0] if sizes.masked else None, sizes)

    @pl.when(pl.program_id(1) == 0)
    def _begin() -> None:
        dk_sum[...], dv_sum[...] = jnp.zeros_like(dk_sum), jnp.zeros_like(dv_sum)

    for head in _heads(sizes):
        q = head.alone(scaled(q_ref[0, :, head.window], sizes.features))
        dout = head.alone(dout_ref[0, :, head.window])
        out = out_ref[0, :, head.window]
        logsumexp = logsumexp_ref[0, head.number, :][None]
        delta = (dout.astype(jnp.float32) * out.astype(jnp.float32)).T.sum(axis=0, keepdims=True)  # D_i, [1, N]

        def block(
            i: Array, dq: Array, head: _Head = head, of_queries: tuple[Array, ...] = (q, dout, logsumexp, delta)
        ) -> Array:
            q, dout, logsumexp, delta = of_queries
            k, v = k_ref[0, keys.rows(i), head.window], v_ref[0, keys.rows(i), head.window]
            logits, valid = keys.logits(i, k, q)
            p = exponentials(logits, logsumexp, valid)  # [block, N]
            dv_sum[keys.rows(i), head.window] += dot(p.astype(dout.dtype), dout, (1, 0))
            dlogits = (p * (dot(v, dout, (1, 1)) - delta)).astype(q.dtype)
            dk_sum[keys.rows(i), head.window] += dot(dlogits, q, (1, 0))
            return dq + dot(k, dlogits, (0, 0))  # [W, N]

        start = jnp.zeros((q.shape[1], q.shape[0]), jnp.float32)
        dq = lax.fori_loop(0, keys.count, block, start)
        head.write(dq_ref, dq.T / math.sqrt(sizes.features))

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _end() -> None:
        dk_ref[0], dv_ref[0] = dk_sum[...].astype(dk_ref.dtype), dv_sum[...].astype(dv_ref.dtype)
