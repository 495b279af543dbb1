"""Which kernels of one platform the program that is being traced may have, and the choice among them."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax.sharding import AxisType

_PORTABLE = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced in the block has no kernel of one platform: attention is the scan over chunks of keys everywhere.

    So are programs that `jax.export` lowers for several platforms; cuDNN's kernel is in none that it writes.
    """
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)


def is_portable() -> bool:
    """Whether what is traced is in a block of `portable`."""
    return _PORTABLE.get()


def inside_shard_map() -> bool:
    """Whether what is traced is each device's part inside a `jax.shard_map`."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def tpu_kernel_is_possible() -> bool:
    """Whether what is traced may have a kernel for TPUs, should it be compiled for one.

    The compiler cannot split such a kernel, so the mesh is known (`sharding.on_mesh`), or there is but one device.
    """
    known = not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1
    return known and not is_portable() and not inside_shard_map()
