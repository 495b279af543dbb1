"""Examples that cannot be read: which example replaces one, and the limit on their number."""

import sys
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from diffusion_jax.errors import UserError

T = TypeVar("T")


class CorruptError(UserError):
    """An example that its source or the decoder cannot read."""


def readable(index: int, size: int, limit: int, read: Callable[[int], T]) -> tuple[int, T]:
    """(place, example): of index or, where that is corrupt, of the next place in the source that is not.

    So the replacement depends on the data alone, not on the process or the time. Raises CorruptError where limit + 1
    examples in a row are corrupt.
    """
    for tried in range(limit + 1):
        place = (index + tried) % size
        try:
            return place, read(place)
        except CorruptError:
            if tried == limit:
                raise
    raise AssertionError


class Skipped:
    """Counts and prints the corrupt examples of this process's rows; raises UserError once they exceed limit."""

    def __init__(self, limit: int, size: int, read: Callable[[int], object]):
        self.limit, self._size, self._read = limit, size, read
        self.found: dict[int, str] = {}  # place in the source: why it cannot be read

    def compare(self, ordered: np.ndarray, used: np.ndarray) -> None:
        """Counts the corrupt examples, from the examples [b] in the data's order and those [b] that were used."""
        for first, last in zip(ordered[ordered != used], used[ordered != used], strict=True):
            for index in ((first + i) % self._size for i in range((last - first) % self._size)):
                if index not in self.found:
                    self._add(int(index))

    def _add(self, index: int) -> None:
        try:
            self._read(index)
            self.found[index] = f"example {index} could not be read at first"
        except CorruptError as error:
            self.found[index] = str(error)
        count, reason = len(self.found), self.found[index]
        if count > self.limit:
            raise UserError(f"{reason}; it is corrupt example {count}, and data.corrupt_limit={self.limit}")
        print(f"diffusion-jax: skipped {reason} ({count} of {self.limit})", file=sys.stderr, flush=True)
