"""A copy of the training state, which a save reads while the next steps overwrite the state itself.

A step is given its state to overwrite, so nothing may read the state once the next step is dispatched. A copy is the
argument of no step. On the devices it takes milliseconds, and the memory of one more state until it is written; in the
host's memory it takes as long as the state takes to get there.
"""

import functools
import sys
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.errors import UserError
from diffusion_jax.train import memory

CHOICES = ("auto", "device", "host")
"""What `checkpoint.copy` may be: a copy on the devices, in the host's memory, or ("auto") on the devices where it fits
beside all that any program has used so far, and else on the host."""

_SPARE = 1.1
"""Times its own size that a copy finds free on every device, or "auto" makes it on the host: memory lies in pieces."""

_HOST = "pinned_host"
"""jax's name of the host's memory that a device reads and writes."""


def check_choice(choice: str) -> None:
    """Raises UserError unless choice is one of `CHOICES`."""
    if choice not in CHOICES:
        raise UserError(f"checkpoint.copy is one of {', '.join(CHOICES)}; got {choice!r}")


class Copier:
    """Copies one run's state, whose arrays have the same shapes and layouts every time."""

    def __init__(self, choice: str):
        check_choice(choice)
        self._choice = choice
        self._programs: dict[bool, Callable[[chex.ArrayTree], chex.ArrayTree]] = {}  # by whether it copies to the host

    def compiled_later(self, tree: chex.ArrayTree) -> Callable[[], None]:
        """A function that compiles what `copy` will run, of arrays like these, which it does not hold."""
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
        to_host = not self._fits(tree)
        program = self._program(tree, to_host=to_host)

        def compile_() -> None:
            self._programs[to_host] = program.lower(like).compile()  # type: ignore[attr-defined]

        return compile_

    def copy(self, tree: chex.ArrayTree) -> chex.ArrayTree | None:
        """A copy of the arrays, split over devices like them; None, said on stderr, where there is no memory for it.

        All processes of a run, each of which must call this, choose alike. Programs that are called later with the
        arrays, to overwrite them, run after the copy is made. `free` gives its memory back.
        """
        program = self._program(tree, to_host=not self._fits(tree))
        try:
            return program(tree)
        except jax.errors.JaxRuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            print(f"diffusion-jax: no copy of the state was made, so training waits for it: {reason}", file=sys.stderr)
            return None

    def _program(self, tree: chex.ArrayTree, *, to_host: bool) -> Callable[[chex.ArrayTree], chex.ArrayTree]:
        if to_host not in self._programs:
            kept = lambda a: a.sharding.with_memory_kind(_HOST) if to_host else a.sharding  # noqa: E731
            self._programs[to_host] = jax.jit(_copied, out_shardings=jax.tree.map(kept, tree))
        return self._programs[to_host]

    def _fits(self, tree: chex.ArrayTree) -> bool:
        """Whether the copy is to be made on the devices."""
        if self._choice != "auto":
            return self._choice == "device"
        fits = _has_room(tree)
        return fits if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.bool_(fits)).all())


def free(copied: chex.ArrayTree) -> None:
    """Gives the memory of a copy back, whoever still holds its arrays."""
    for a in jax.tree.leaves(copied):
        a.delete()


def _copied(tree: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(jnp.copy, tree)


def _has_room(tree: chex.ArrayTree) -> bool:
    """Whether every device of this process has room for a copy of its part; a CPU's memory is the host's."""
    needed: dict[jax.Device, int] = {}
    for a in jax.tree.leaves(tree):
        size = _bytes_on_a_device(a.shape, a.dtype, a.sharding)
        for device in a.sharding.addressable_devices:
            needed[device] = needed.get(device, 0) + size
    room = {device: memory.left_on(device) for device in needed if device.platform != "cpu"}
    return all(left is not None and left >= _SPARE * needed[device] for device, left in room.items())


@functools.lru_cache(maxsize=4096)
def _bytes_on_a_device(shape: tuple[int, ...], dtype: np.dtype, sharding: jax.sharding.Sharding) -> int:
    return int(np.prod(sharding.shard_shape(shape))) * dtype.itemsize
