"""Blocks of examples in memory, read once for all threads."""

import collections
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class BlockCache(Generic[T]):
    """The blocks that were used last, of at most capacity bytes together, or one; picklable, without its blocks.

    load reads a block, and sizes are the bytes that each takes. Threads that want a block while it is read wait for it.
    """

    def __init__(self, load: Callable[[int], T], sizes: Sequence[int], capacity: int):
        self._load, self._sizes, self._capacity = load, sizes, capacity
        self._empty()

    def _empty(self) -> None:
        self._lock = threading.Lock()
        self._blocks: collections.OrderedDict[int, Future[T]] = collections.OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, object]:
        return {"_load": self._load, "_sizes": self._sizes, "_capacity": self._capacity}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._empty()

    def get(self, block: int) -> T:
        """The block; raises what load raises."""
        with self._lock:
            future = self._blocks.get(block)
            mine = future is None
            if future is None:
                future = self._blocks[block] = Future()
                self._bytes += self._sizes[block]
            self._blocks.move_to_end(block)
            while self._bytes > self._capacity and len(self._blocks) > 1:
                self._bytes -= self._sizes[self._blocks.popitem(last=False)[0]]
        if mine:
            try:
                future.set_result(self._load(block))
            except BaseException as error:
                with self._lock:
                    if self._blocks.get(block) is future:
                        del self._blocks[block]
                        self._bytes -= self._sizes[block]
                future.set_exception(error)
        return future.result()
