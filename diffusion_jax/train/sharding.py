"""Where every array lives: a mesh with axes data, fsdp and tensor, and rules from a parameter's path to its layout.

The batch is split over data x fsdp. A parameter is split over `tensor` where a rule names its axis and over `fsdp`
along its largest remaining axis; the optimizer state and the average follow their parameter, whose path ends theirs,
and may be split over `data` besides.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

P = ParamSpec("P")
T = TypeVar("T")

TensorRules = Sequence[tuple[str, int]]
"""(path pattern, axis split over `tensor`); the first match counts, arrays without one are not split over it. A network
family declares its own.
"""

_SMALLEST_SPLIT = 2**12  # elements; gathering less than this costs more than holding it


def mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Any = None) -> Mesh:
    """The device mesh; a size of -1 takes the devices that the others leave."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    shape = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if len(free) > 1 or min(sizes.values()) < -1 or fixed < 1 or (free and len(devices) % fixed):
        raise UserError(f"mesh ({shape}) does not fit {len(devices)} devices; sizes are positive and one may be -1")
    if free:
        sizes[free[0]] = len(devices) // fixed
    elif fixed != len(devices):
        raise UserError(f"mesh ({shape}) has {fixed} places for {len(devices)} devices; set one size to -1")
    return jax.make_mesh(tuple(sizes.values()), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Splits the batch axis, which `leading` unsplit axes precede, over data x fsdp."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, ("data", "fsdp")))


def on_mesh(mesh: Mesh, program: Callable[P, T]) -> Callable[P, T]:
    """The program with the mesh known where it is traced: a kernel that the compiler cannot split is split over it by
    itself (`nets.splash_attention`).
    """

    @functools.wraps(program)
    def traced(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return program(*args, **kwargs)

    return traced


def to_mesh(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has alike, laid out over the mesh of all of them."""

    def place(a: Any) -> jax.Array:
        host = np.asarray(a)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)


def to_host(a: Any) -> np.ndarray:
    """The whole of an array, wherever its parts are; each process must call this."""
    if not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated:
        return np.asarray(a)
    return np.asarray(multihost_utils.process_allgather(a, tiled=True))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises unless every device gets an equal share of each micro-batch."""
    share = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    if batch_size < 1 or batch_size % share:
        raise UserError(
            f"train.batch_size={batch_size} is not divisible by {share} "
            f"(mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']} x train.accumulate {accumulate})"
        )


def tree_sharding(tree: Any, mesh: Mesh, rules: TensorRules = (), *, fsdp: bool = True, zero: bool = False) -> Any:
    """The layout of every array of a tree (of arrays or their shapes) by its path; without fsdp, over tensor alone.

    With zero, what of a training state is not `params` is split over data too (ZeRO stage 1, arXiv:1910.02054).
    """

    def layout(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        apart = zero and not name.startswith("params/")
        return NamedSharding(mesh, partition(name, leaf.shape, mesh, rules, fsdp=fsdp, zero=apart))

    return jax.tree_util.tree_map_with_path(layout, tree)


def partition(
    name: str,
    shape: tuple[int, ...],
    mesh: Mesh,
    rules: TensorRules = (),
    *,
    fsdp: bool = True,
    zero: bool = False,
) -> PartitionSpec:
    """The PartitionSpec of one array from its path ("params/down_0/block_0/conv1/kernel") and shape; zero: over data.

    An axis that its mesh axis does not divide is left whole.
    """
    axes: list[str | None] = [None] * len(shape)
    if mesh.shape["tensor"] > 1:
        for pattern, axis in rules:
            if re.search(pattern, name):
                if len(shape) >= -axis and shape[axis] % mesh.shape["tensor"] == 0:
                    axes[axis] = "tensor"
                break
    for over in [name for name, wanted in {"fsdp": fsdp, "data": zero}.items() if wanted]:
        if mesh.shape[over] > 1 and np.prod(shape) >= _SMALLEST_SPLIT:
            free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % mesh.shape[over] == 0]
            if free:
                axes[max(free, key=lambda i: (shape[i], i))] = over
    return PartitionSpec(*axes)


def gather(
    params: Any, mesh: Mesh, rules: TensorRules = (), as_read: Callable[[Any], Any] = lambda params: params
) -> Any:
    """Parameters as the network uses them, whole but for `tensor`: states inside a jit that fsdp splits storage only.

    Without it the compiler carries the split of a kernel into the activations, with all-to-alls between layers. They
    are sent in the types that as_read gives them.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    # Said of the cast parts too: the compiler would gather first and cast then.
    parts = jax.tree.map(jax.lax.with_sharding_constraint, as_read(params), tree_sharding(params, mesh, rules))
    return jax.tree.map(jax.lax.with_sharding_constraint, parts, tree_sharding(params, mesh, rules, fsdp=False))
