"""Long sequences split over the mesh axis `context`: each device has a part of the tokens, of every layer.

Between attentions a token needs no other, so nothing is sent. Self-attention swaps the split: an all-to-all gives every
device all tokens of some of the heads, and a second one its own tokens of all heads again (DeepSpeed-Ulysses,
arXiv:2309.14509). The functions here state these layouts, and the compiler sends what they ask for. Dimension key B
batch, N tokens, H heads, D features.
"""

import math

import jax
from jax import Array
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError

AXIS = "context"


def _mesh() -> AbstractMesh | None:
    """The mesh of the program that is traced, if it splits tokens."""
    mesh = jax.sharding.get_abstract_mesh()
    split = mesh.shape.get(AXIS, 1) > 1 and AxisType.Manual not in mesh.axis_types
    return mesh if split else None


def tokens_are_split() -> bool:
    """Whether the program that is traced has tokens split over devices."""
    return _mesh() is not None


def split_tokens(x: Array) -> Array:
    """x [B, N, ...], its tokens split over `context` where the mesh has it; the values are the same.

    Raises UserError where the axis does not divide the tokens.
    """
    if (mesh := _mesh()) is None:
        return x
    size, tokens = mesh.shape[AXIS], x.shape[1]
    if tokens % size:
        raise UserError(f"mesh.context={size} does not divide a sequence of {tokens} tokens; choose a size that does")
    return _laid_out(x, mesh, 1, AXIS)


def split_heads(x: Array) -> Array:
    """x [B, N, H, D], split by heads over `tensor` and `context` where the mesh has the latter; the values stay.

    Raises UserError where these axes do not divide the heads.
    """
    if (mesh := _mesh()) is None:
        return x
    axes = tuple(axis for axis in ("tensor", AXIS) if mesh.shape.get(axis, 1) > 1)
    sizes, heads = [mesh.shape[axis] for axis in axes], x.shape[2]
    if heads % math.prod(sizes):
        said = " x ".join(f"mesh.{axis}={size}" for axis, size in zip(axes, sizes, strict=True))
        raise UserError(f"{said} does not divide the {heads} heads of an attention; choose sizes that do")
    return _laid_out(x, mesh, 2, axes)


def _laid_out(x: Array, mesh: AbstractMesh, axis: int, over: str | tuple[str, ...]) -> Array:
    """x with one axis split over those of the mesh, and the others as the compiler has them."""
    spec: list[object] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = over
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))
