"""A Pallas kernel for TPUs of the gated feed-forward layer, whose inner width never leaves vector memory.

Dimension key T tokens, C channels, F inner width, in parts of `PART`. XLA writes the two inner arrays [T, F] and the
gated one, eight times the bytes of the tokens, and reads them again for the gradient. Here a block of tokens goes
through the layer at once, and the backward pass, which gives all gradients, computes the inner arrays again.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from diffusion_jax.nets.own_gradient import Rule

BLOCK = 512
"""Tokens that go through the layer at once."""

PART = 640
"""Of the inner width, at most, that is held at once."""

HELD = 32 * 2**20
"""Bytes of vector memory, at most, for the kernels in 16 bits and their gradients in 32."""

_VECTOR_MEMORY = 62 * 2**20  # with the blocks of tokens; the smallest of TPUs since v5e have 64 MiB


class Weights(NamedTuple):
    """Of the layer (x linear + b) * GELU(x gate + b') project + b'', each bias [1, its width]."""

    linear: Array  # [C, F]
    linear_bias: Array
    gate: Array  # [C, F]
    gate_bias: Array
    project: Array  # [F, C]
    project_bias: Array


def takes(channels: int, inner: int) -> bool:
    """Whether the kernels of a layer and their gradients fit in `HELD`, and its inner width falls into equal parts."""
    return channels * inner * 3 * (2 + 4) <= HELD and _part(inner) is not None


def _part(inner: int) -> int | None:
    """The largest part that divides the inner width, a multiple of 128."""
    return next((part for part in range(PART, 0, -128) if inner % part == 0), None)


def plain(x: Array, *weights: Array) -> Array:
    """The layer by XLA's operations, in x's type: x [..., C] -> like x."""
    w = Weights(*weights)
    linear = x @ w.linear.astype(x.dtype) + w.linear_bias[0].astype(x.dtype)
    gate = x @ w.gate.astype(x.dtype) + w.gate_bias[0].astype(x.dtype)
    gated = linear * jax.nn.gelu(gate, approximate=False)
    return gated @ w.project.astype(x.dtype) + w.project_bias[0].astype(x.dtype)


@functools.cache
def rule(*, interpret: bool = False) -> Rule:
    """The layer of x [B, N, C] in 16 bits and six weights, by the kernel; with interpret, run by any platform's XLA.

    On the mesh of the context it runs in a shard_map, the batch over data x fsdp.
    """

    def output(x: Array, *weights: Array) -> Array:
        return _over_batch(functools.partial(_forward, interpret), sums=0)(x, *weights)

    def backward(arrays: Sequence[Array], read: Sequence[Array], g: Array) -> tuple[Array, ...]:
        x, *weights = arrays
        return _over_batch(functools.partial(_backward, interpret), sums=len(weights))(x, g, *weights)

    return Rule(
        output=output,
        forward=lambda *arrays: (output(*arrays), ()),
        backward=backward,
        reference=plain,
        moving=1 + len(Weights._fields),
        reads_output=False,
        by_example=False,
    )


def splits(batch: int) -> bool:
    """Whether the mesh of the context, if any, splits nothing but the batch, and evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or (mesh.size == math.prod(mesh.shape[axis] for axis in _axes()) and batch % mesh.size == 0)


def _axes() -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in ("data", "fsdp") if mesh.shape.get(axis, 1) > 1)


def _over_batch(f: Callable[..., Any], *, sums: int) -> Callable[..., Any]:
    """f on each device's examples; of its results the last `sums` are added up over the devices."""
    axes = _axes()
    if not axes:
        return f

    def summed(*args: Array) -> Any:
        out = f(*args)
        return (*out[:-sums], *(lax.psum(a, axes) for a in out[-sums:])) if sums else out

    def split(*args: Array) -> Any:
        examples, whole = PartitionSpec(axes), PartitionSpec()
        given = tuple(examples if a.ndim == 3 else whole for a in args)
        mesh = jax.sharding.get_abstract_mesh()
        out = (examples, *[whole] * sums) if sums else examples
        # The kernels do not say over which axes their results vary.
        return jax.shard_map(summed, mesh=mesh, in_specs=given, out_specs=out, check_vma=False)(*args)

    return split


def _forward(interpret: bool, x: Array, *weights: Array) -> Array:
    rows = _rows(x)
    run = _call(_apply, "gated_feed_forward", rows, Weights(*weights), "xw", "x", interpret)
    return run(rows, *_as_read(weights, x.dtype))[0][: x.shape[0] * x.shape[1]].reshape(x.shape)


def _backward(interpret: bool, x: Array, g: Array, *weights: Array) -> tuple[Array, ...]:
    rows = _rows(x)
    run = _call(_gradients, "gated_feed_forward_gradients", rows, Weights(*weights), "xxw", "xs", interpret)
    to_x, *to_weights = run(rows, _rows(g), *_as_read(weights, x.dtype))
    to_x = to_x[: x.shape[0] * x.shape[1]].reshape(x.shape)
    return to_x, *(to.astype(w.dtype) for to, w in zip(to_weights, weights, strict=True))


def _rows(a: Array) -> Array:
    """[B, N, C] -> [T, C], T padded with zeros, of which no gradient comes, to a multiple of a block."""
    rows = a.reshape(-1, a.shape[-1])
    return jnp.pad(rows, ((0, -len(rows) % BLOCK), (0, 0)))


def _as_read(weights: Sequence[Array], dtype: jnp.dtype) -> Iterator[Array]:
    return (w.astype(dtype if w.shape[0] > 1 else jnp.float32) for w in weights)


def _call(
    body: Callable[..., None], name: str, rows: Array, weights: Weights, inputs: str, outputs: str, interpret: bool
) -> Callable[..., list[Array]]:
    """The Pallas call of a body for each block of tokens; x: an array of tokens, w: the weights, s: sums like these."""
    tokens, channels = rows.shape
    block = pl.BlockSpec((BLOCK, channels), lambda i: (i, 0))
    # One buffer: these move once, and two would leave half the room.
    whole = [pl.BlockSpec(w.shape, lambda i: (0, 0), pipeline_mode=pl.Buffered(1)) for w in weights]
    specs = {"x": [block], "w": whole, "s": whole}
    shapes = {
        "x": [jax.ShapeDtypeStruct(rows.shape, rows.dtype)],
        "w": [jax.ShapeDtypeStruct(w.shape, rows.dtype) for w in weights],
        "s": [jax.ShapeDtypeStruct(w.shape, jnp.float32) for w in weights],
    }
    inner = weights.linear.shape[1]
    moved = [a for kind in inputs + outputs for a in shapes[kind]]
    return pl.pallas_call(
        functools.partial(body, part=_part(inner)),
        grid=(tokens // BLOCK,),
        in_specs=[spec for kind in inputs for spec in specs[kind]],
        out_specs=[spec for kind in outputs for spec in specs[kind]],
        out_shape=[shape for kind in outputs for shape in shapes[kind]],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=_VECTOR_MEMORY),
        cost_estimate=pl.CostEstimate(
            flops=2 * tokens * channels * inner * (8 if "s" in outputs else 3),
            transcendentals=tokens * inner,
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in moved),
        ),
        interpret=interpret,
        name=name,
    )


def _dot(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    """The product of two matrices over one axis of each, float32."""
    over = ((contracted[:1], contracted[1:]), ((), ()))
    return lax.dot_general(a, b, over, preferred_element_type=jnp.float32)


def _inner(x: Array, w: Weights, part: Any) -> tuple[Array, Array, Array]:
    """(x linear + b, x gate + b', the normal distribution's CDF at the latter), float32, a part of the inner width."""
    linear = _dot(x, w.linear[:, part], (1, 0)) + w.linear_bias[:, part]
    gate = _dot(x, w.gate[:, part], (1, 0)) + w.gate_bias[:, part]
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
        return total + _dot((linear * gate * cdf).astype(x.dtype), w.project[columns, :], (1, 0))

    start = jnp.broadcast_to(w.project_bias[...], x.shape)
    out_ref[...] = _over_parts(w, part, add, start).astype(out_ref.dtype)


def _gradients(x_ref: Any, g_ref: Any, *refs: Any, part: int) -> None:
    """The gradient of a block of tokens; those of the weights are added up over the blocks."""
    n = len(Weights._fields)
    w, to_x_ref, to = Weights(*refs[:n]), refs[n], Weights(*refs[n + 1 :])
    x, g = x_ref[...], g_ref[...]

    @pl.when(pl.program_id(0) == 0)
    def _begin() -> None:
        for ref in to:
            ref[...] = jnp.zeros_like(ref)

    to.project_bias[...] += g.astype(jnp.float32).sum(axis=0, keepdims=True)

    def add(columns: Any, to_x: Array) -> Array:
        linear, gate, cdf = _inner(x, w, columns)
        density = jnp.exp(-0.5 * gate * gate) / math.sqrt(2 * math.pi)
        to.project[columns, :] += _dot((linear * gate * cdf).astype(x.dtype), g, (0, 0))
        to_gated = _dot(g, w.project[columns, :], (1, 1))  # [block, part]
        to_linear, to_gate = to_gated * gate * cdf, to_gated * linear * (cdf + gate * density)
        to.linear_bias[:, columns] += to_linear.sum(axis=0, keepdims=True)
        to.gate_bias[:, columns] += to_gate.sum(axis=0, keepdims=True)
        to_linear, to_gate = to_linear.astype(x.dtype), to_gate.astype(x.dtype)
        to.linear[:, columns] += _dot(x, to_linear, (0, 0))
        to.gate[:, columns] += _dot(x, to_gate, (0, 0))
        return to_x + _dot(to_linear, w.linear[:, columns], (1, 1)) + _dot(to_gate, w.gate[:, columns], (1, 1))

    to_x_ref[...] = _over_parts(w, part, add, jnp.zeros(x.shape, jnp.float32)).astype(to_x_ref.dtype)
