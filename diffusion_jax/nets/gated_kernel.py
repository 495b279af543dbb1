"""A Pallas kernel for TPUs of the gated feed-forward layer, whose inner width never leaves vector memory.

Dimension key B batch, N tokens of an example, T = B N tokens, C channels, F inner width, in parts of `PART`. XLA writes
the two inner arrays [T, F] and the gated one, eight times the bytes of the tokens, and reads them again for the
gradient. Here a block of tokens goes through the layer at once, and the backward pass, which gives all gradients,
computes the inner arrays again. Names with d before them are cotangents: dx is that of x.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from diffusion_jax.nets.tpu_kernels import (
    BLOCK,
    LANES,
    GridCall,
    Operand,
    cost,
    divides,
    dot,
    over_mesh,
    pad,
    split_axes,
)

PART = 640
"""Of the inner width, at most, that is held at once."""

HELD = 32 * 2**20
"""Bytes of vector memory, at most, for the weights in 16 bits and their gradients in 32. The rest of
`tpu_kernels.VECTOR_MEMORY` is for the blocks of tokens and of the inner width."""


class Weights(NamedTuple):
    """Of the layer (x linear + linear_bias) * GELU(x gate + gate_bias) project + project_bias."""

    linear: Array  # [C, F]
    linear_bias: Array  # [F]; in the kernel [1, F]
    gate: Array  # [C, F]
    gate_bias: Array  # [F]
    project: Array  # [F, C]
    project_bias: Array  # [C]


def takes(channels: int, inner: int) -> bool:
    """Whether the weights of a layer and their gradients fit in `HELD`, and its inner width is whole lanes."""
    return channels * inner * 3 * (2 + 4) <= HELD and inner % LANES == 0


def splits(batch: int) -> bool:
    """Whether the mesh of the context, if any, splits nothing but the batch, and evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = _batch_axes()
    return mesh.empty or (mesh.size == math.prod(mesh.shape[axis] for axis in axes) and divides(axes, batch))


def forward(x: Array, *weights: Array, interpret: bool) -> Array:
    """The layer of x [B, N, C] in 16 bits and `Weights`: [B, N, C]. The batch is split over the mesh of the context."""
    batch, whole = PartitionSpec(_batch_axes()), PartitionSpec()
    run = over_mesh(functools.partial(_forward, interpret), (batch, *[whole] * len(weights)), batch)
    return run(x, *_biases_as_rows(weights))


def backward(x: Array, dout: Array, *weights: Array, interpret: bool) -> tuple[Array, ...]:
    """The cotangents of x and of the weights, of that of the output, [B, N, C]; split as `forward` is."""
    axes = _batch_axes()
    batch, whole = PartitionSpec(axes), [PartitionSpec()] * len(weights)

    def summed(*args: Array) -> tuple[Array, ...]:
        dx, *dweights = _backward(interpret, *args)
        return dx, *(lax.psum(a, axes) if axes else a for a in dweights)

    dx, *dweights = over_mesh(summed, (batch, batch, *whole), (batch, *whole))(x, dout, *_biases_as_rows(weights))
    return dx, *(dw.reshape(w.shape) for dw, w in zip(dweights, weights, strict=True))


def _part(inner: int) -> int:
    """The largest part, a multiple of `LANES`, that divides the inner width, which `takes` wants to be one too."""
    return next(part for part in range(PART, 0, -LANES) if inner % part == 0)


def _batch_axes() -> tuple[str, ...]:
    return split_axes("data", "fsdp")


def _biases_as_rows(weights: Sequence[Array]) -> Iterator[Array]:
    return (w if w.ndim == 2 else w[None] for w in weights)


def _forward(interpret: bool, x: Array, *weights: Array) -> Array:
    rows, sizes = _rows(x), _Sizes.of(x, *weights)
    call = sizes.call("gated_feed_forward", [sizes.of_rows, *sizes.of_weights(x.dtype)], [sizes.of_rows], products=3)
    body = functools.partial(_apply, part=_part(sizes.inner))
    (out,) = call.run(body, rows, *_as_read(weights, x.dtype), interpret=interpret)
    return _examples(out, x)


def _backward(interpret: bool, x: Array, dout: Array, *weights: Array) -> tuple[Array, ...]:
    rows, sizes = _rows(x), _Sizes.of(x, *weights)
    inputs = [sizes.of_rows, sizes.of_rows, *sizes.of_weights(x.dtype)]
    outputs = [sizes.of_rows, *sizes.of_weights(jnp.float32)]
    call = sizes.call("gated_feed_forward_gradients", inputs, outputs, products=8)
    body = functools.partial(_gradients, part=_part(sizes.inner))
    dx, *dweights = call.run(body, rows, _rows(dout), *_as_read(weights, x.dtype), interpret=interpret)
    return _examples(dx, x), *(dw.astype(w.dtype) for dw, w in zip(dweights, weights, strict=True))


def _rows(a: Array) -> Array:
    """[B, N, C] -> [T, C], T padded with zeros, of which no gradient comes, to a multiple of a block."""
    return pad(a.reshape(-1, a.shape[-1]), 0, multiple=BLOCK)


def _examples(rows: Array, like: Array) -> Array:
    """[T padded, C] -> like's [B, N, C]."""
    return rows[: like.shape[0] * like.shape[1]].reshape(like.shape)


def _as_read(weights: Sequence[Array], dtype: jnp.dtype) -> Iterator[Array]:
    """Matrices in x's type, biases in float32."""
    return (w.astype(dtype if w.shape[0] > 1 else jnp.float32) for w in weights)


class _Sizes(NamedTuple):
    """The sizes of a layer, and its arrays as the kernel has them."""

    tokens: int  # T, padded to a multiple of `BLOCK`
    channels: int
    inner: int
    dtype: jnp.dtype

    @classmethod
    def of(cls, x: Array, *weights: Array) -> Self:
        """Those of x [B, N, C] and weights."""
        channels, inner = weights[0].shape
        return cls(-(-x.shape[0] * x.shape[1] // BLOCK) * BLOCK, channels, inner, x.dtype)

    @property
    def of_rows(self) -> Operand:
        """[T padded, C], by blocks of tokens."""
        array = jax.ShapeDtypeStruct((self.tokens, self.channels), self.dtype)
        return Operand(array, pl.BlockSpec((BLOCK, self.channels), lambda i: (i, 0)))

    def of_weights(self, dtype: jnp.dtype) -> list[Operand]:
        """All weights, or sums of their cotangents over the tokens, at once."""
        into, out_of = (self.channels, self.inner), (self.inner, self.channels)
        shapes = [into, (1, self.inner), into, (1, self.inner), out_of, (1, self.channels)]  # as in `Weights`
        # One buffer: these move once, and two would leave half the room.
        return [
            Operand(
                jax.ShapeDtypeStruct(shape, dtype),
                pl.BlockSpec(shape, lambda i: (0, 0), pipeline_mode=pl.Buffered(1)),
            )
            for shape in shapes
        ]

    def call(self, name: str, inputs: Sequence[Operand], outputs: Sequence[Operand], *, products: int) -> GridCall:
        """The call for each block of tokens, with so many matrix products of T x C x F."""
        return GridCall(
            name,
            grid=(self.tokens // BLOCK,),
            semantics=("arbitrary",),
            inputs=inputs,
            outputs=outputs,
            cost=cost(
                flops=2 * self.tokens * self.channels * self.inner * products,
                transcendentals=self.tokens * self.inner,
                moved=[operand.array for operand in (*inputs, *outputs)],
            ),
        )


def _inner(x: Array, w: Weights, part: Any) -> tuple[Array, Array, Array]:
    """(x linear + its bias, x gate + its bias, the normal distribution's CDF at the latter) of a part of the inner
    width, float32.
    """
    linear = dot(x, w.linear[:, part], (1, 0)) + w.linear_bias[:, part]
    gate = dot(x, w.gate[:, part], (1, 0)) + w.gate_bias[:, part]
    return linear, gate, 0.5 * (1 + lax.erf(gate * math.sqrt(0.5)))


def _over_parts(w: Weights, part: int, body: Callable[[Any, Array], Array], total: Array) -> Array:
    """total after body(lanes of a part of the inner width, total) for each part; a loop, for that compiles sooner."""

    def step(i: Array, total: Array) -> Array:
        return body(pl.ds(pl.multiple_of(i * part, part), part), total)

    return lax.fori_loop(0, w.linear.shape[1] // part, step, total)


def _apply(x_ref: Any, *refs: Any, part: int) -> None:
    """The layer of a block of tokens."""
    *weights, out_ref = refs
    x, w = x_ref[...], Weights(*weights)

    def add(columns: Any, total: Array) -> Array:
        linear, gate, cdf = _inner(x, w, columns)
        return total + dot((linear * gate * cdf).astype(x.dtype), w.project[columns, :], (1, 0))

    start = jnp.broadcast_to(w.project_bias[...], x.shape)
    out_ref[...] = _over_parts(w, part, add, start).astype(out_ref.dtype)


def _gradients(x_ref: Any, dout_ref: Any, *refs: Any, part: int) -> None:
    """dx of a block of tokens; the cotangents of the weights are added up over the blocks."""
    n = len(Weights._fields)
    w, dx_ref, dw = Weights(*refs[:n]), refs[n], Weights(*refs[n + 1 :])
    x, dout = x_ref[...], dout_ref[...]

    @pl.when(pl.program_id(0) == 0)
    def _begin() -> None:
        for ref in dw:
            ref[...] = jnp.zeros_like(ref)

    dw.project_bias[...] += dout.astype(jnp.float32).sum(axis=0, keepdims=True)

    def add(columns: Any, dx: Array) -> Array:
        linear, gate, cdf = _inner(x, w, columns)
        density = jnp.exp(-0.5 * gate * gate) / math.sqrt(2 * math.pi)
        dw.project[columns, :] += dot((linear * gate * cdf).astype(x.dtype), dout, (0, 0))
        dgated = dot(dout, w.project[columns, :], (1, 1))  # [block, part]
        dlinear, dgate = dgated * gate * cdf, dgated * linear * (cdf + gate * density)
        dw.linear_bias[:, columns] += dlinear.sum(axis=0, keepdims=True)
        dw.gate_bias[:, columns] += dgate.sum(axis=0, keepdims=True)
        dlinear, dgate = dlinear.astype(x.dtype), dgate.astype(x.dtype)
        dw.linear[:, columns] += dot(x, dlinear, (0, 0))
        dw.gate[:, columns] += dot(x, dgate, (0, 0))
        return dx + dot(dlinear, w.linear[:, columns], (1, 1)) + dot(dgate, w.gate[:, columns], (1, 1))

    dx_ref[...] = _over_parts(w, part, add, jnp.zeros(x.shape, jnp.float32)).astype(dx_ref.dtype)
