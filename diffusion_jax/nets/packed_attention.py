"""A Pallas kernel of attention for TPUs that reads and writes heads side by side, as projections give them.

Dimension key B batch, N queries, M keys, H heads, D features of a head, C = H D, W the lanes of a head's window.

A TPU lays an array's last axis in lanes of 128. On an axis of its own a head of 40 features takes three times its bytes
in memory; in [B, N, C] it takes what it has. Here a block of all channels is read at once, and each head works on the
one or two widths of 128 lanes that hold it, with zeros in place of its neighbours. For the matrix unit that is the work
of a head that is padded to 128 or 256.

Logits are held as [keys, queries], so that the statistics of the softmax are rows. The keys of an example are all in
vector memory, so one pass gives all gradients and writes each once; `takes` says up to how many that is. The algorithms
are FlashAttention's (arXiv:2205.14135, algorithms 1 and 4).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from diffusion_jax.nets.attention_kernels import FAR, Gradients, Kernel
from diffusion_jax.nets.splash_attention import LANES, over_mesh

BLOCK = 512
"""Queries, and keys, at most, whose logits are held at once."""

HELD = 54 * 2**20
"""Bytes of vector memory, at most, for an example's keys and values, the gradients of these and their sums."""

_VECTOR_MEMORY = 62 * 2**20  # with the blocks of queries and of logits; the smallest of TPUs since v5e have 64 MiB


def takes(q: Array, k: Array, mask: Array | None) -> bool:
    """Whether this kernel takes q and k, [B, N or M, H, D]: keys that fit in `HELD`, and a mask of keys alone."""
    held = _up(k.shape[1]) * _up(k.shape[2] * k.shape[3]) * (4 * q.dtype.itemsize + 2 * 4)
    return held <= HELD and (mask is None or mask.shape[1:3] == (1, 1))


@functools.cache
def packed(*, interpret: bool = False) -> Kernel:
    """The kernel; with interpret, run by any platform's XLA, slowly.

    On the mesh of the context it runs in a shard_map, as `splash_attention.splash` does.
    """
    output = functools.partial(_output, interpret)
    forward = functools.partial(_forward, interpret)
    backward = functools.partial(_backward, interpret)
    return Kernel(
        lambda q, k, v, mask: over_mesh(output, "qqqm", "q")(q, k, v, _of_keys(mask))[0],
        lambda q, k, v, mask: over_mesh(forward, "qqqm", "ql")(q, k, v, _of_keys(mask)),
        lambda q, k, v, mask, out, lse, g: over_mesh(backward, "qqqmqlq", "qqq")(q, k, v, _of_keys(mask), out, lse, g),
    )


def _of_keys(mask: Array | None) -> Array | None:
    return None if mask is None else mask[:, 0, 0]  # [B, M]


def _output(interpret: bool, q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array]:
    sizes = _Sizes.of(q, k, mask)
    run = sizes.call(_attend, "packed_attention", "qkk", "q", interpret=interpret)
    (out,) = run(*sizes.mask(mask), *(sizes.pack(a) for a in (q, k, v)))
    return (sizes.unpack(out, q),)


def _forward(interpret: bool, q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
    sizes = _Sizes.of(q, k, mask)
    run = sizes.call(_attend, "packed_attention", "qkk", "ql", interpret=interpret)
    out, logsumexp = run(*sizes.mask(mask), *(sizes.pack(a) for a in (q, k, v)))
    return sizes.unpack(out, q), logsumexp[:, :, : q.shape[1]]


def _backward(
    interpret: bool, q: Array, k: Array, v: Array, mask: Array | None, out: Array, logsumexp: Array, g: Array
) -> Gradients:
    sizes = _Sizes.of(q, k, mask)
    run = sizes.call(_gradients, "packed_attention_gradients", "qkkqlq", "qkk", sums=2, interpret=interpret)
    logsumexp = jnp.pad(logsumexp, [(0, 0), (0, 0), (0, sizes.rows - q.shape[1])])
    packs = [sizes.pack(a) for a in (q, k, v, out)]
    to_q, to_k, to_v = run(*sizes.mask(mask), *packs, logsumexp, sizes.pack(g))
    return sizes.unpack(to_q, q), sizes.unpack(to_k, k), sizes.unpack(to_v, v)


def _up(size: int) -> int:
    return -(-size // LANES) * LANES


def _block(size: int) -> int:
    return next(block for block in (BLOCK, 256, LANES) if size % block == 0)


class _Sizes(NamedTuple):
    """The sizes of one attention."""

    batch: int
    queries: int
    keys: int
    heads: int
    features: int
    type: jnp.dtype
    masked: bool

    @classmethod
    def of(cls, q: Array, k: Array, mask: Array | None) -> "_Sizes":
        batch, queries, heads, features = q.shape
        return cls(batch, queries, k.shape[1], heads, features, q.dtype, mask is not None)

    @property
    def channels(self) -> int:
        return self.heads * self.features

    @property
    def rows(self) -> int:
        """Queries, padded to lanes."""
        return _up(self.queries)

    @property
    def columns(self) -> int:
        """Keys, padded to lanes."""
        return _up(self.keys)

    def pack(self, a: Array) -> Array:
        """[B, N, H, D] -> [B, N padded, C]."""
        return jnp.pad(a.reshape(*a.shape[:2], self.channels), [(0, 0), (0, -a.shape[1] % LANES), (0, 0)])

    def unpack(self, a: Array, like: Array) -> Array:
        """[B, N padded, C] -> like's [B, N, H, D]."""
        return a[:, : like.shape[1]].reshape(like.shape)

    def mask(self, mask: Array | None) -> list[Array]:
        """[B, M] -> [[B, M padded, 1]] of 0 and 1, or [] where there is none."""
        if mask is None:
            return []
        return [jnp.pad(mask, [(0, 0), (0, self.columns - self.keys)]).astype(jnp.float32)[..., None]]

    def call(
        self, body: Callable[..., None], name: str, inputs: str, outputs: str, *, sums: int = 0, interpret: bool
    ) -> Callable[..., list[Array]]:
        """The Pallas call of a body for each block of queries of each example.

        Letters name what it reads and writes: q an array of queries, k of keys, l logsumexps. The mask, if any, comes
        before its inputs, and so many sums over the queries, float32 [M, C], after its outputs.
        """
        block, channels = _block(self.rows), self.channels
        shapes = {
            "q": jax.ShapeDtypeStruct((self.batch, self.rows, channels), self.type),
            "k": jax.ShapeDtypeStruct((self.batch, self.columns, channels), self.type),
            "l": jax.ShapeDtypeStruct((self.batch, self.heads, self.rows), jnp.float32),
            "m": jax.ShapeDtypeStruct((self.batch, self.columns, 1), jnp.float32),
        }
        specs = {
            "q": pl.BlockSpec((1, block, channels), lambda example, i: (example, i, 0)),
            "k": pl.BlockSpec(  # one buffer: these move once an example, and two would leave half the room
                (1, self.columns, channels), lambda example, i: (example, 0, 0), pipeline_mode=pl.Buffered(1)
            ),
            "l": pl.BlockSpec((1, self.heads, block), lambda example, i: (example, 0, i)),
            "m": pl.BlockSpec((1, self.columns, 1), lambda example, i: (example, 0, 0)),
        }
        inputs = "m" * self.masked + inputs
        return pl.pallas_call(
            functools.partial(body, sizes=self),
            grid=(self.batch, self.rows // block),
            in_specs=[specs[kind] for kind in inputs],
            out_specs=[specs[kind] for kind in outputs],
            out_shape=[shapes[kind] for kind in outputs],
            scratch_shapes=[pltpu.VMEM((self.columns, channels), jnp.float32)] * sums,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VECTOR_MEMORY
            ),
            cost_estimate=self._cost([shapes[kind] for kind in inputs + outputs], products=5 if sums else 2),
            interpret=interpret,
            name=name,
        )

    def _cost(self, moved: Sequence[jax.ShapeDtypeStruct], products: int) -> pl.CostEstimate:
        logits = self.batch * self.heads * self.queries * self.keys
        moved_bytes = sum(math.prod(a.shape[:-1]) * _up(a.shape[-1]) * a.dtype.itemsize for a in moved)
        return pl.CostEstimate(
            flops=2 * products * logits * self.features, transcendentals=logits, bytes_accessed=moved_bytes
        )


class _Head(NamedTuple):
    """Where a head lies: from the lane `first` of a window of the channels on."""

    number: int
    window: slice  # of lanes, from a multiple of 128 on
    first: int
    features: int

    def own(self, a: Array) -> Array:
        """a [N, W], and 0 in the lanes of other heads."""
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
        window = slice(start // LANES * LANES, min(_up(stop), sizes.channels))
        found.append(_Head(number, window, start - window.start, sizes.features))
    return found


def _dot(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    """The product of two matrices over one axis of each, float32."""
    over = ((contracted[:1], contracted[1:]), ((), ()))
    return lax.dot_general(a, b, over, preferred_element_type=jnp.float32)


def _scaled(a: Array, features: int) -> Array:
    return (a.astype(jnp.float32) / math.sqrt(features)).astype(a.dtype)


class _Keys:
    """The keys of an example, of which a loop takes one block after another."""

    def __init__(self, mask: Any, sizes: _Sizes):
        self._mask, self._keys, self._columns = mask, sizes.keys, sizes.columns
        self.block = _block(sizes.columns)
        self.blocks = sizes.columns // self.block

    def rows(self, i: Array) -> Any:
        """The rows of block i."""
        return pl.ds(pl.multiple_of(i * self.block, self.block), self.block)

    def logits(self, i: Array, k: Array, q: Array) -> tuple[Array, Callable[[Array], Array]]:
        """k [block, W] and q [N, W] -> (logits [block, N], what makes exponentials of them 0 where there is no key)."""
        x = _dot(k, q, (1, 1))
        if self._mask is not None:
            valid = self._mask[0, self.rows(i), :] > 0
            # A query without any key has equal logits, whose exponentials are 1.
            return jnp.where(valid, x, FAR), lambda p: jnp.where(valid, p, 0)
        if self._keys < self._columns:
            row = lax.broadcasted_iota(jnp.int32, (self.block, 1), 0) + i * self.block
            x = jnp.where(row < self._keys, x, FAR)
        return x, lambda p: p


def _attend(*refs: Any, sizes: _Sizes) -> None:
    """The output of a block of queries, and where there is a ref for it the logsumexp: algorithm 1."""
    q_ref, k_ref, v_ref, out_ref, *logsumexp_ref = refs[sizes.masked :]
    keys = _Keys(refs[0] if sizes.masked else None, sizes)
    queries = q_ref.shape[1]
    for head in _heads(sizes):
        q = head.own(_scaled(q_ref[0, :, head.window], sizes.features))

        def block(i: Array, carry: tuple[Array, Array, Array], q: Array = q, head: _Head = head) -> Any:
            total, denominator, most = carry
            k, v = k_ref[0, keys.rows(i), head.window], v_ref[0, keys.rows(i), head.window]
            x, where_keys = keys.logits(i, k, q)
            higher = jnp.maximum(most, x.max(axis=0, keepdims=True))
            p, shrink = where_keys(jnp.exp(x - higher)), jnp.exp(most - higher)
            attended = _dot(v, p.astype(v.dtype), (0, 0))  # [W, N]
            return total * shrink + attended, denominator * shrink + p.sum(axis=0, keepdims=True), higher

        zero = jnp.zeros((1, queries), jnp.float32)
        start = (jnp.zeros((q.shape[1], queries), jnp.float32), zero, zero + FAR)
        total, denominator, most = lax.fori_loop(0, keys.blocks, block, start)
        denominator = jnp.where(denominator > 0, denominator, 1)  # of a query without a key
        head.write(out_ref, (total / denominator).T)
        for ref in logsumexp_ref:
            ref[0, head.number, :] = (most + jnp.log(denominator))[0]


def _gradients(*refs: Any, sizes: _Sizes) -> None:
    """The gradients of a block of queries, and after the last block those of the keys and values: algorithm 4."""
    q_ref, k_ref, v_ref, out_ref, logsumexp_ref, g_ref, to_q_ref, to_k_ref, to_v_ref, to_k, to_v = refs[sizes.masked :]
    keys = _Keys(refs[0] if sizes.masked else None, sizes)

    @pl.when(pl.program_id(1) == 0)
    def _begin() -> None:
        to_k[...], to_v[...] = jnp.zeros_like(to_k), jnp.zeros_like(to_v)

    for head in _heads(sizes):
        q = head.own(_scaled(q_ref[0, :, head.window], sizes.features))
        g = head.own(g_ref[0, :, head.window])
        out = out_ref[0, :, head.window]
        logsumexp = logsumexp_ref[0, head.number, :][None]
        mean = (g.astype(jnp.float32) * out.astype(jnp.float32)).T.sum(axis=0, keepdims=True)  # [1, N]

        def block(
            i: Array, to_q: Array, head: _Head = head, rows: tuple[Array, ...] = (q, g, logsumexp, mean)
        ) -> Array:
            q, g, logsumexp, mean = rows
            k, v = k_ref[0, keys.rows(i), head.window], v_ref[0, keys.rows(i), head.window]
            x, where_keys = keys.logits(i, k, q)
            p = where_keys(jnp.exp(x - logsumexp))  # [block, N]
            to_v[keys.rows(i), head.window] += _dot(p.astype(g.dtype), g, (1, 0))
            to_logits = (p * (_dot(v, g, (1, 1)) - mean)).astype(q.dtype)
            to_k[keys.rows(i), head.window] += _dot(to_logits, q, (1, 0))
            return to_q + _dot(k, to_logits, (0, 0))  # [W, N]

        start = jnp.zeros((q.shape[1], q.shape[0]), jnp.float32)
        to_q = lax.fori_loop(0, keys.blocks, block, start)
        head.write(to_q_ref, to_q.T / math.sqrt(sizes.features))

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _end() -> None:
        to_k_ref[0], to_v_ref[0] = to_k[...].astype(to_k_ref.dtype), to_v[...].astype(to_v_ref.dtype)
