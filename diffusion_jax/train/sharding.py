"""The layout of every array on a mesh with the axes data, fsdp, tensor and context, by rules on paths of parameters.

The batch is split over data x fsdp, and the tokens of long sequences over context (`nets.context`). A parameter is
split over `tensor` along the axis that a rule names, and over `fsdp` along its largest other axis. The optimizer state
and the average are laid out as their parameter, whose path ends theirs; with zero they are split over `data` too.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import chex
import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")

P = ParamSpec("P")
T = TypeVar("T")
Tree = TypeVar("Tree")

TensorRules = Sequence[tuple[str, int]]
"""Pairs (pattern of a path, axis that is split over `tensor`). The first pattern that matches a path counts. Arrays
that none matches are not split over `tensor`. Each network family declares its rules."""

_SMALLEST_SPLIT = 2**12  # elements: gathering a smaller array costs more than holding a copy of it


def mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    *,
    context: int = 1,
    slices: int = 1,
) -> Mesh:
    """The mesh of these sizes over the devices (None: all); a size of -1 takes the devices that the others leave.

    With several slices, the data axis alone crosses from one to the next: `device_order`. Raises UserError where the
    sizes do not fit the number of devices, or the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "context": context}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    shape = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if len(free) > 1 or min(sizes.values()) < -1 or fixed < 1 or (free and len(devices) % fixed):
        raise UserError(f"mesh ({shape}) does not fit {len(devices)} devices; sizes are positive and one may be -1")
    if free:
        sizes[free[0]] = len(devices) // fixed
    elif fixed != len(devices):
        raise UserError(f"mesh ({shape}) has {fixed} places for {len(devices)} devices; set one size to -1")
    types = (AxisType.Auto,) * len(AXES)
    if slices == 1 and len({getattr(device, "slice_index", None) for device in devices}) == 1:
        built = jax.make_mesh(tuple(sizes.values()), AXES, devices=devices, axis_types=types)
    else:
        built = Mesh(device_order(devices, tuple(sizes.values()), slices), AXES, axis_types=types)
    check_processes(built.devices)
    return built


def device_order(devices: Sequence[jax.Device], shape: Sequence[int], slices: int) -> np.ndarray:
    """The devices as an array of the mesh's shape, whose first axis goes through one slice after another.

    So the collectives of the other axes, and of parts of the first, stay within a slice's fast network: gradients alone
    are summed over the slow one between slices. Raises UserError where the devices are not of so many equal slices, or
    these do not divide the first axis.
    """
    found = Counter(getattr(device, "slice_index", None) for device in devices)
    if None in found or len(found) != slices or len(set(found.values())) > 1:
        are = "do not say of which slice they are" if None in found else f"are of {_counted(found)}"
        raise UserError(
            f"mesh.slices={slices} is the number of slices, of equal size; the {len(devices)} devices {are}"
        )
    if shape[0] % slices:
        raise UserError(f"mesh.data={shape[0]} is not divisible by mesh.slices={slices}, over which it is split first")
    inner = (shape[0] // slices, *shape[1:])
    split = devices[0].device_kind in ("TPU v5 lite", "TPU v5e")  # as `jax.make_mesh` has it
    over = (slices, *[1] * len(shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(inner, over, devices, allow_split_physical_axes=split)


def _counted(found: Mapping[int | None, int]) -> str:
    """{slice: devices} in words."""
    return f"{len(found)} slice{'s' * (len(found) > 1)} of {', '.join(str(n) for n in found.values())}"


def check_processes(devices: np.ndarray) -> None:
    """Raises UserError where the devices [data, fsdp, ...] that share examples are of several processes.

    Each process reads the examples of its own devices, so that it would feed others than its neighbour does.
    """
    for share in devices.reshape(-1, math.prod(devices.shape[2:])):
        if len({device.process_index for device in share}) > 1:
            raise UserError(
                f"mesh.tensor x mesh.context = {len(share)} devices are of several processes; choose sizes "
                "that divide the number of devices of one process"
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout with a copy of the array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """The layout that splits the batch axis over data x fsdp; `leading` axes before it are not split."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, ("data", "fsdp")))


def on_mesh(mesh: Mesh, program: Callable[P, T]) -> Callable[P, T]:
    """The program, traced with the mesh known.

    A kernel that the compiler cannot split then splits itself over the mesh (`nets.tpu_kernels`).
    """

    @functools.wraps(program)
    def traced(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return program(*args, **kwargs)

    return traced


def to_mesh(tree: Tree, sharding: NamedSharding) -> Tree:
    """A tree of host arrays, equal in all processes, as arrays laid out over the mesh of all processes."""

    def place(a: chex.Array) -> Array:
        host = np.asarray(a)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)


def to_host(a: chex.Array) -> np.ndarray:
    """The whole array on the host, whichever devices and processes hold its parts. Every process must call this."""
    if not isinstance(a, Array) or a.is_fully_addressable or a.is_fully_replicated:
        return np.asarray(a)
    return np.asarray(multihost_utils.process_allgather(a, tiled=True))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises UserError unless every device gets an equal share of each of `accumulate` micro-batches."""
    share = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    if batch_size < 1 or batch_size % share:
        raise UserError(
            f"train.batch_size={batch_size} is not divisible by {share} "
            f"(mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']} x train.accumulate {accumulate})"
        )


def tree_sharding(tree: Tree, mesh: Mesh, rules: TensorRules = (), *, fsdp: bool = True, zero: bool = False) -> Tree:
    """The tree with a `NamedSharding` in the place of every array, by its path; its leaves may also be shapes.

    Without fsdp, arrays are split over `tensor` alone. With zero, all of a training state but `params` is split over
    `data` too: stage 1 of ZeRO (arXiv:1910.02054).
    """

    def layout(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
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
    """The PartitionSpec of one array, by its path such as "params/down_0/block_0/conv1/kernel" and its shape.

    fsdp splits the array over `fsdp` and zero over `data`, each along the largest axis that is left. An axis whose
    length the mesh axis does not divide is not split, nor is an array of few elements.
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
    params: Tree, mesh: Mesh, rules: TensorRules = (), as_read: Callable[[Tree], Tree] = lambda params: params
) -> Tree:
    """The parameters as a network uses them inside `jax.jit`, split over `tensor` alone, in the types of as_read.

    So `fsdp` splits their storage and not the arithmetic. Without this constraint the compiler carries the split of a
    kernel into the activations, with all-to-alls between layers. The types are those in which they are sent.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    # Said of the cast parts too: the compiler would gather first and cast then.
    parts = jax.tree.map(jax.lax.with_sharding_constraint, as_read(params), tree_sharding(params, mesh, rules))
    return jax.tree.map(jax.lax.with_sharding_constraint, parts, tree_sharding(params, mesh, rules, fsdp=False))
