"""A loss that jumps and stays: what a roll-back is for though every number is finite."""

import collections
import statistics


class Spikes:
    """Tells of `limit` losses in a row above factor times the median of the `window` losses before them.

    Losses in such a row do not count towards the median; until `window` losses were seen, or where it is not positive,
    none is above it.
    """

    def __init__(self, *, factor: float, window: int, limit: int):
        self._factor, self._limit = factor, limit
        self._before: collections.deque[float] = collections.deque(maxlen=window)
        self.in_a_row = 0

    def add(self, loss: float) -> str:
        """Takes the loss of the next step; what to say where the row is complete, else ""."""
        full = len(self._before) == self._before.maxlen
        median = statistics.median(self._before) if full else 0.0
        if not full or median <= 0 or loss <= self._factor * median:
            # A row that ended was no divergence: the losses of it are left out all the same.
            self.in_a_row = 0
            self._before.append(loss)
            return ""
        self.in_a_row += 1
        if self.in_a_row < self._limit:
            return ""
        return f"the loss is {loss:.4g}, over {self._factor:g} times its median of {median:.4g}, {self._limit} in a row"
