"""Detection of a loss that jumps and stays high, a divergence in which every number is finite."""

import collections
import statistics


class Spikes:
    """Finds `limit` losses in a row above factor times the median of the `window` losses before them.

    The losses of such a row do not enter the median. No loss counts as high before `window` losses have been seen, or
    where their median is not positive.
    """

    def __init__(self, *, factor: float, window: int, limit: int):
        self._factor, self._limit = factor, limit
        self._before: collections.deque[float] = collections.deque(maxlen=window)
        self.in_a_row = 0

    def add(self, loss: float) -> str:
        """Takes the loss of the next step. Returns a message where it completes a row of high losses, else ""."""
        full = len(self._before) == self._before.maxlen
        median = statistics.median(self._before) if full else 0.0
        if not full or median <= 0 or loss <= self._factor * median:
            # The row has ended, so it was no divergence. Its losses stay out of the median.
            self.in_a_row = 0
            self._before.append(loss)
            return ""
        self.in_a_row += 1
        if self.in_a_row < self._limit:
            return ""
        return f"the loss is {loss:.4g}, over {self._factor:g} times its median of {median:.4g}, {self._limit} in a row"
