"""Batches from the host to the devices, transferred a few steps ahead of their use."""

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax.train.sharding import batch_sharding
from diffusion_jax.train.state import Position
from diffusion_jax.train.step import Batch


class HostBatches(Protocol):
    """An endless iterator over this process's slices of the global batches, whose position can be saved."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> Position:
        """The position of the next batch."""
        ...


def device_batches(
    host: HostBatches,
    mesh: Mesh,
    *,
    steps_per_dispatch: int = 1,
    ahead: int = 2,
    handed: Callable[[np.ndarray], None] | None = None,
) -> Iterator[tuple[Batch, Position]]:
    """Endless pairs (batch on the mesh, position after it), transferred up to `ahead` dispatches before their use.

    With steps_per_dispatch n > 1 the arrays of a batch are [n, B, ...]. Every entry of a batch is transferred but
    "index" [n B], the examples' places in the data set, which handed gets as its batch is yielded. The position is that
    of the batch yielded, not of those under way, so that a checkpoint stores exactly what training has seen.
    """
    stacked = steps_per_dispatch > 1
    sharding = batch_sharding(mesh, leading=int(stacked))

    def transfer() -> tuple[Batch, Position, np.ndarray]:
        batches = [next(host) for _ in range(steps_per_dispatch)]
        batch = jax.tree.map(lambda *arrays: np.stack(arrays), *batches) if stacked else batches[0]
        read = {name: a for name, a in batch.items() if name != "index"}
        on_mesh = {name: jax.make_array_from_process_local_data(sharding, a) for name, a in read.items()}
        return on_mesh, host.get_state(), np.ravel(batch.get("index", ()))

    queue = collections.deque(transfer() for _ in range(ahead))
    while True:
        queue.append(transfer())
        batch, position, index = queue.popleft()
        if handed is not None:
            handed(index)
        yield batch, position
