"""The order of examples in buckets: each batch has the images of one bucket, and so one size.

The images of a bucket form an endless stream of their own, epoch after epoch, each a permutation. In epoch e of the
training, bucket k of n_k images gives floor((e + 1) n_k / B) - floor(e n_k / B) batches of B, with which its stream
goes on where it stopped. So after e epochs a bucket has given floor(e n_k / B) B examples: each of its images e times,
but for at most B - 1 images that it has given e - 1 times. The batches of an epoch come in a random order. All of it
follows from the seed and the number of a batch, in closed form.
"""

import bisect
import dataclasses
import functools

import numpy as np

from diffusion_jax.data.buckets import Buckets
from diffusion_jax.data.order import BATCHES, EXAMPLES, raw_numbers


@dataclasses.dataclass(frozen=True)
class BucketOrder:
    """The `ExampleOrder` of buckets in batches of batch_size, all processes together."""

    seed: int
    batch_size: int
    channels: int
    buckets: Buckets

    def examples(self, first: int, count: int) -> np.ndarray:
        """As `ExampleOrder`."""
        bucket, start = self._batch(first)
        size, before = self.buckets.counts[bucket], sum(self.buckets.counts[:bucket])
        epochs, within = np.divmod(start + first % self.batch_size + np.arange(count), size)
        return np.concatenate(
            [
                _epoch_order(self.seed, int(epoch), self.buckets)[before + within[epochs == epoch]]
                for epoch in np.unique(epochs)
            ]
        )

    def shape(self, first: int) -> tuple[int, ...]:
        """As `ExampleOrder`: the size of the batch's bucket."""
        bucket, _ = self._batch(first)
        return (*self.buckets.sizes[bucket], self.channels)

    def state(self) -> dict[str, int | str]:
        """As `ExampleOrder`: the batch size and a digest of the buckets, without which a position has no meaning."""
        return {"buckets": f"batches of {self.batch_size} in {len(self.buckets.sizes)} sizes ({self.buckets.digest})"}

    def _batch(self, first: int) -> tuple[int, int]:
        """(the bucket of the batch at position first of the stream, where it starts in the stream of the bucket)."""
        number = first // self.batch_size
        # After e epochs at least e N / B - K batches are over.
        total = len(self.buckets.numbers)
        most = (number + len(self.buckets.sizes)) * self.batch_size // total + 2
        epoch = bisect.bisect_right(range(1, most), number, key=lambda e: int(self._given(e).sum()))
        given = self._given(epoch)
        bucket, nth = _batch_order(self.seed, epoch, self.batch_size, self.buckets)[number - int(given.sum())].tolist()
        return bucket, (int(given[bucket]) + nth) * self.batch_size

    def _given(self, epochs: int) -> np.ndarray:
        """The batches that each bucket has given after so many epochs, int64 [K]."""
        return _batches_after(epochs, self.batch_size, self.buckets)


def _batches_after(epochs: int, batch_size: int, buckets: Buckets) -> np.ndarray:
    return epochs * np.asarray(buckets.counts, np.int64) // batch_size


@functools.lru_cache(maxsize=4)
def _batch_order(seed: int, epoch: int, batch_size: int, buckets: Buckets) -> np.ndarray:
    """The batches of an epoch in their order, int64 [M, 2]: the bucket, and which of its batches of the epoch it is."""
    counts = _batches_after(epoch + 1, batch_size, buckets) - _batches_after(epoch, batch_size, buckets)
    order = np.argsort(raw_numbers(seed, BATCHES, epoch, int(counts.sum())), kind="stable")
    bucket = np.repeat(np.arange(len(counts)), counts)[order]
    nth = np.empty_like(bucket)
    for k, count in enumerate(counts):
        nth[bucket == k] = np.arange(count)
    return np.stack([bucket, nth], axis=1)


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, buckets: Buckets) -> np.ndarray:
    """The examples of bucket after bucket, those of each in the order of its own epoch, int64 [N]."""
    raw = raw_numbers(seed, EXAMPLES, epoch, len(buckets.numbers))
    return np.lexsort((raw, buckets.numbers))
