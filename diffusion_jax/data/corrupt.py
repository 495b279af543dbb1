"""Examples that cannot be read: what takes their place, and when they are too many."""

import sys
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from diffusion_jax.errors import UserError

T = TypeVar("T")


class CorruptError(UserError):
    """An example that its source or the decoder cannot read."""


def readable(index: int, size: int, limit: int, read: Callable[[int], T]) -> tuple[int, T]:
    """(which, its example): index, or where that is corrupt the next one in the source that is not.

    So what takes its place depends on the data alone, not on who reads or when. Raises CorruptError after limit + 1.
    """
    for tried in range(limit + 1):
        which = (index + tried) % size
        try:
            return which, read(which)
        except CorruptError:
            if tried == limit:
                raise
    raise AssertionError


class Skipped:
    """Counts and names the corrupt examples of this process's rows; raises UserError once they are more than limit."""

    def __init__(self, limit: int, size: int, read: Callable[[int], object]):
        self.limit, self._size, self._read = limit, size, read
        self.found: dict[int, str] = {}  # place in the source: why it cannot be read

    def compare(self, asked: np.ndarray, used: np.ndarray) -> None:
        """Takes the examples [b] that were to be read, and those that were."""
        for first, last in zip(asked[asked != used], used[asked != used], strict=True):
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
