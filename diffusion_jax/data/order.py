"""The order of the examples in the stream: a function of the seed and the position alone.

Of most sources every order is as likely. Examples of a source with `Blocks` can only be read a block at a time, so
that a uniform order would read a block for each of its examples. There the blocks come in a random order, and an
example keeps near the others of its block: its key is (bytes in the blocks before its own) + u * window, u uniform in
[0, 1), and the examples come in the order of their keys. So at each position the blocks in use hold at most the window
and one block more, new ones come in one by one, and the order is still a permutation that a number's position fixes.
"""

import dataclasses
import functools
from typing import Protocol

import numpy as np

from diffusion_jax.data.example import Blocks

EXAMPLES, _COINS, _BLOCKS, BATCHES = 0, 1, 2, 3
"""Purposes of random numbers."""


class ExampleOrder(Protocol):
    """Which example is at each position of the stream, and the shape of the arrays there; picklable."""

    def examples(self, first: int, count: int) -> np.ndarray:
        """The examples at positions [first, first + count), all of them of one batch, int64 [count]."""
        ...

    def shape(self, first: int) -> tuple[int, ...]:
        """The shape *S C of the arrays in the batch at position first."""
        ...

    def state(self) -> dict[str, int | str]:
        """The entries that a saved position has beside its number, by which one of another order is recognized."""
        ...


def _key(seed: int, purpose: int) -> np.ndarray:
    """A Philox key. NumPy promises to keep raw Philox output the same, unlike the streams of its Generator."""
    return np.random.SeedSequence([seed, purpose]).generate_state(2, np.uint64)


def raw_numbers(seed: int, purpose: int, epoch: int, count: int) -> np.ndarray:
    """Random numbers of an epoch, uint64 [count]."""
    return np.random.Philox(key=_key(seed, purpose), counter=[0, epoch, 0, 0]).random_raw(count)


@functools.lru_cache(maxsize=4)  # two streams, each astride two epochs
def _epoch_order(seed: int, epoch: int, size: int, blocks: Blocks | None = None) -> np.ndarray:
    """A permutation of range(size), int64 [size]: uniform or, with blocks, within their window."""
    raw = raw_numbers(seed, EXAMPLES, epoch, size)
    if blocks is None or sum(blocks.bytes) <= blocks.window:
        return np.argsort(raw, kind="stable")
    held = np.asarray(blocks.bytes, np.int64)
    order = np.argsort(raw_numbers(seed, _BLOCKS, epoch, len(held)), kind="stable")
    before = np.empty_like(held)
    before[order] = np.cumsum(held[order]) - held[order]
    u = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.argsort(np.repeat(before, blocks.examples) + blocks.window * u, kind="stable")


def example_indices(seed: int, size: int, first: int, count: int, blocks: Blocks | None = None) -> np.ndarray:
    """The examples at positions [first, first + count) of the stream over size examples, int64 [count]."""
    positions = np.arange(first, first + count)
    epochs, within = np.divmod(positions, size)
    parts = [_epoch_order(seed, int(epoch), size, blocks)[within[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class SingleShapeOrder:
    """The order of `example_indices`, in which the arrays of all batches have one shape."""

    seed: int
    size: int  # of the source
    array_shape: tuple[int, ...]  # *S C
    blocks: Blocks | None = None  # of the source

    def examples(self, first: int, count: int) -> np.ndarray:
        """As `ExampleOrder`; a position may be of any batch."""
        return example_indices(self.seed, self.size, first, count, self.blocks)

    def shape(self, first: int) -> tuple[int, ...]:
        """As `ExampleOrder`."""
        return self.array_shape

    def state(self) -> dict[str, int | str]:
        """As `ExampleOrder`: the bytes of blocks that are shuffled together, of a source that has them."""
        return {} if self.blocks is None else {"window": self.blocks.window}


def coins(seed: int, first: int, count: int) -> np.ndarray:
    """A fair coin for each of the positions [first, first + count), bool [count]."""
    # Philox counts in blocks of four numbers: position k owns block k.
    raw = np.random.Philox(key=_key(seed, _COINS), counter=first).random_raw(4 * count)
    return raw[::4] >> np.uint64(63) == 1
