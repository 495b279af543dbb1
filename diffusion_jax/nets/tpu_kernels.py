"""What the kernels for TPUs share: sizes in lanes, a Pallas call over a grid of blocks, and splitting over a mesh.

Every kernel has a switch `interpret`, with which any platform's XLA runs it, slowly: so it is tested without a TPU.
Dimension key B batch, N queries, M keys, H heads, D features of a head.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from diffusion_jax.nets.attention_kernels import Gradients, Kernel

LANES = 128
"""Elements of an array's last axis that a TPU's registers, and its memory, hold side by side."""

BLOCK = 512
"""Queries, keys or tokens, at most, that a step of a kernel works on at once."""

VECTOR_MEMORY = 62 * 2**20
"""Bytes that a kernel may take of a chip's vector memory: the smallest of TPUs since v5e have 64 MiB."""

FEWEST_TOKENS = 256
"""Queries, or tokens of a feed-forward layer, from which "auto" takes a kernel of ours on a TPU."""


def padded(size: int) -> int:
    """The least multiple of `LANES` that is not below size."""
    return -(-size // LANES) * LANES


def pad(a: Array, *axes: int, multiple: int = LANES) -> Array:
    """The array, with zeros behind its end on these axes, so that their sizes are multiples of `multiple`."""
    return jnp.pad(a, [(0, -size % multiple if axis in axes else 0) for axis, size in enumerate(a.shape)])


def block_size(size: int) -> int:
    """The largest block, `BLOCK` at most, that divides size, a multiple of `LANES`."""
    return next(block for block in (BLOCK, 256, LANES) if size % block == 0)


def scaled(a: Array, features: int) -> Array:
    """a / sqrt(D), divided in float32, in a's type: queries, so that logits need no scale, and their cotangents."""
    return (a.astype(jnp.float32) / math.sqrt(features)).astype(a.dtype)


def dot(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    """The product of two matrices, summed over an axis of a and one of b, float32."""
    over = ((contracted[:1], contracted[1:]), ((), ()))
    return lax.dot_general(a, b, over, preferred_element_type=jnp.float32)


class Operand(NamedTuple):
    """An array that a kernel reads or writes, and the block of it that each step of the grid has."""

    array: jax.ShapeDtypeStruct
    block: pl.BlockSpec


@dataclasses.dataclass(frozen=True)
class GridCall:
    """A kernel that runs once for each step of a grid."""

    name: str
    grid: tuple[int, ...]
    semantics: tuple[Literal["parallel", "arbitrary"], ...]
    """Of each axis of the grid: "parallel", or "arbitrary" where a step adds to what the steps before it left."""
    inputs: Sequence[Operand]
    outputs: Sequence[Operand]
    cost: pl.CostEstimate
    scratch: Sequence[jax.ShapeDtypeStruct] = ()
    """Arrays in vector memory that are kept from step to step."""

    def run(self, body: Callable[..., None], *arrays: Array, interpret: bool) -> list[Array]:
        """The outputs of a body that takes references to the blocks of inputs, outputs and scratch, in this order."""
        call = pl.pallas_call(
            body,
            grid=self.grid,
            in_specs=[operand.block for operand in self.inputs],
            out_specs=[operand.block for operand in self.outputs],
            out_shape=[operand.array for operand in self.outputs],
            scratch_shapes=[pltpu.VMEM(a.shape, a.dtype) for a in self.scratch],
            compiler_params=pltpu.CompilerParams(dimension_semantics=self.semantics, vmem_limit_bytes=VECTOR_MEMORY),
            cost_estimate=self.cost,
            interpret=interpret,
            name=self.name,
        )
        return call(*arrays)


def cost(flops: int, transcendentals: int, moved: Iterable[jax.ShapeDtypeStruct]) -> pl.CostEstimate:
    """What the compiler, and a plan, count a kernel as; moved are the arrays that it reads and writes, each once."""
    moved_bytes = sum(math.prod(a.shape) * a.dtype.itemsize for a in moved)
    return pl.CostEstimate(flops=flops, transcendentals=transcendentals, bytes_accessed=moved_bytes)


def in_lanes(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The array as a TPU's memory has it, its last axis in whole lanes."""
    return jax.ShapeDtypeStruct((*a.shape[:-1], padded(a.shape[-1])), a.dtype)


def split_axes(*names: str) -> tuple[str, ...]:
    """Those of these axes over which the mesh of the context (`jax.sharding.use_abstract_mesh`) is split."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in names if mesh.shape.get(name, 1) > 1)


def divides(axes: Sequence[str], size: int) -> bool:
    """Whether these axes of the mesh of the context split so many examples or heads evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    return size % math.prod(mesh.shape[axis] for axis in axes) == 0


def over_mesh(f: Callable[..., Any], in_specs: tuple[Any, ...], out_specs: Any) -> Callable[..., Any]:
    """f on each device's part of its arguments, since the compiler cannot split a kernel; without a mesh, f."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return f
    # The kernels do not say over which axes their results vary.
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _dividing(size: int, *names: str) -> tuple[str, ...] | None:
    """The axes of `split_axes`, or None where there are none or they do not divide size."""
    axes = split_axes(*names)
    return axes if axes and divides(axes, size) else None


class _AttentionSpecs(NamedTuple):
    """How the arrays of an attention are split: the batch over data x fsdp, the heads over tensor x context, each as
    far as these axes divide it.
    """

    heads: PartitionSpec  # [B, N or M, H, D]
    logsumexp: PartitionSpec  # [B, H, N]
    keys: PartitionSpec  # [B, M]

    @classmethod
    def of(cls, q: Array) -> Self:
        """Those of queries [B, N, H, D]."""
        batch, head = _dividing(q.shape[0], "data", "fsdp"), _dividing(q.shape[2], "tensor", "context")
        return cls(PartitionSpec(batch, None, head, None), PartitionSpec(batch, head, None), PartitionSpec(batch, None))

    def of_arguments(self, mask: Array | None) -> tuple[PartitionSpec | None, ...]:
        """Those of q, k, v and the mask, if any."""
        return self.heads, self.heads, self.heads, None if mask is None else self.keys


def kernel_over_mesh(
    primal: Callable[..., Array],
    forward: Callable[..., tuple[Array, Array]],
    backward: Callable[..., Gradients],
    interpret: bool,
) -> Kernel:
    """The kernel of functions for one device, split over the mesh of the context.

    They are as `Kernel` has them, but take `interpret` before the other arguments, and a mask of keys [B, M] or None.
    """

    def split_primal(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        specs, keys = _AttentionSpecs.of(q), _of_keys(mask)
        run = over_mesh(functools.partial(primal, interpret), specs.of_arguments(keys), specs.heads)
        return run(q, k, v, keys)

    def split_forward(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
        specs, keys = _AttentionSpecs.of(q), _of_keys(mask)
        results = (specs.heads, specs.logsumexp)
        return over_mesh(functools.partial(forward, interpret), specs.of_arguments(keys), results)(q, k, v, keys)

    def split_backward(
        q: Array, k: Array, v: Array, mask: Array | None, out: Array, logsumexp: Array, dout: Array
    ) -> Gradients:
        specs, keys = _AttentionSpecs.of(q), _of_keys(mask)
        given = (*specs.of_arguments(keys), specs.heads, specs.logsumexp, specs.heads)
        run = over_mesh(functools.partial(backward, interpret), given, (specs.heads,) * 3)
        return run(q, k, v, keys, out, logsumexp, dout)

    return Kernel(split_primal, split_forward, split_backward)


def is_of_keys(mask: Array | None) -> bool:
    """Whether a mask [B, 1 or H, 1 or N, M], if any, has the same keys for all queries and heads."""
    return mask is None or mask.shape[1:3] == (1, 1)


def _of_keys(mask: Array | None) -> Array | None:
    return None if mask is None else mask[:, 0, 0]  # [B, M]
