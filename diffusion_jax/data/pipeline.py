"""Endless training batches whose order and augmentation depend on the seed alone.

The examples form one endless stream: epoch after epoch, each in an order of its own. A position in the stream fixes the
example and its augmentation. Batch n of size B is the positions [n B, (n + 1) B), and each process takes a contiguous
share of its rows, as the devices of a global array do. So batches do not depend on the number of hosts, threads and
workers, and one number says where a run stopped.

Grain runs this in threads or processes. Its ElasticIterator deals rows out in turns (i, i + n, i + 2n, ...): the order
of the global batch, and with it the noise that each image meets, would depend on the host count. Its shuffle takes
11 us an example, five times as much as all that a cached digit needs here.
"""

import dataclasses
import math
import multiprocessing
import sys
import threading
from collections.abc import Sequence
from typing import Protocol

import grain
import numpy as np
from absl import flags

from diffusion_jax.data import stream_position
from diffusion_jax.data.bucket_order import BucketOrder
from diffusion_jax.data.buckets import Buckets
from diffusion_jax.data.corrupt import Skipped
from diffusion_jax.data.decoded import Decoded, Decoder
from diffusion_jax.data.example import Source, blocks_of
from diffusion_jax.data.order import ExampleOrder, SingleShapeOrder, coins
from diffusion_jax.data.precomputed import Precomputed
from diffusion_jax.data.readers import Reader, Rows
from diffusion_jax.data.stream_position import StreamPosition
from diffusion_jax.errors import UserError

Batch = dict[str, np.ndarray]


class _BatchIterator(Protocol):
    """Grain's iterator of batches."""

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


MAX_CACHE = 2**32  # bytes of decoded examples


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of the examples, and the share of each batch that this process reads."""

    seed: int
    batch_size: int  # global
    flip: bool = False  # mirror half of the examples at random, except where `Reader.keeps_side` forbids it
    process_index: int = 0
    process_count: int = 1
    buckets: Buckets | None = None  # of images, each batch being of one of them; None: all have one shape


@dataclasses.dataclass(frozen=True)
class Reading:
    """Options of reading, on which the batches do not depend."""

    cache: bool = False  # hold decoded examples in memory
    corrupt_limit: int = 0  # unreadable examples, at most, that are named and replaced
    threads: int = 4  # in each worker, or in this process where there are none
    workers: int = 0  # processes


PLAIN = Reading()


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The function that threads and workers run: position of a batch in the stream -> this process's rows of it."""

    decoded: Decoded
    order: ExampleOrder
    seed: int
    flip: bool
    precomputed: Precomputed | None
    offset: int  # of this process's first row in the global batch
    count: int

    def indices(self, start: int) -> np.ndarray:
        """The examples of this process's rows, int64 [count], with those that cannot be read."""
        return self.order.examples(start + self.offset, self.count)

    def __call__(self, start: int) -> Batch:
        first, shape = start + self.offset, self.order.shape(start)
        index, arrays, values = self.decoded.read(self.indices(start), shape)
        each = list(zip(self.decoded.readers, values, strict=True))
        where = None
        if self.flip:
            where = coins(self.seed, first, self.count)
            for reader, read in each:
                if (upright := reader.keeps_side(read)) is not None:
                    where &= ~upright
            if arrays.size:
                arrays = self.decoded.decoder.mirror(arrays, where)
        batch = {"index": index, "bytes": np.array([self.decoded.bytes_read.take()])}
        if self.precomputed:
            batch |= self.precomputed.read(index, where)
        if arrays.size:
            batch["x"] = self.decoded.decoder.to_model(arrays)
        rows = Rows(self.seed, first, self.count, shape[:-1], where)
        for reader, read in each:
            batch |= reader.entries(read, rows)
        return batch


class TrainBatches:
    """An endless iterator of batches, prepared ahead in threads or worker processes; `train_batches` makes one."""

    def __init__(self, rows: _Rows, batch_size: int, source: Source, reading: Reading):
        self.skipped = Skipped(reading.corrupt_limit, len(source), rows.decoded.read_one)
        self.bytes_read = 0  # for the batches so far, encoded, by this process
        self._rows, self._batch_size, self._fingerprint = rows, batch_size, source.fingerprint
        self._threads, self._workers = reading.threads, reading.workers
        self._prefetch = max(reading.threads, 2)
        self._position = 0
        self._batches: _BatchIterator | None = None  # from _position on, once it is needed
        self._lock = threading.Lock()

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        with self._lock:
            if self._batches is None:
                self._batches = self._open()
            batch = next(self._batches)
            if self.skipped.limit:
                self.skipped.compare(self._rows.indices(self._position), batch["index"])
            self.bytes_read += int(batch.pop("bytes")[0])
            self._position += self._batch_size
        # Workers hand over shared memory, which would leak if a batch outlived the iterator.
        return {key: np.array(array) for key, array in batch.items()} if self._workers else batch

    def _open(self) -> _BatchIterator:
        starts = grain.MapDataset.range(self._position, sys.maxsize, self._batch_size)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._prefetch)
        batches = starts.map(self._rows).to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain hands the flags to its workers
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return iter(batches)

    def get_state(self) -> StreamPosition:
        """The position of the next batch, as JSON takes it; equal in all processes."""
        state = StreamPosition(position=self._position, source=self._fingerprint)
        return state | self._rows.order.state()  # type: ignore[return-value]

    def examples(self, start: int) -> np.ndarray:
        """The examples of the batch at position start, all processes together, with those that cannot be read."""
        return self._rows.order.examples(start, self._batch_size)

    def set_state(self, state: StreamPosition) -> None:
        """Goes on at a position from `get_state`; raises UserError if it belongs to other data or another order."""
        stream_position.check(state, self.get_state())
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        """Stops the threads and workers.

        Where a thread still reads after a second, because the data stall, threads are left behind and workers ended.
        """
        if not self._lock.acquire(timeout=1):
            for worker in multiprocessing.active_children() if self._workers else []:
                worker.terminate()
            return
        try:
            if self._batches is not None:
                self._batches.close()
            self._batches = None
        finally:
            self._lock.release()


def train_batches(
    source: Source,
    decoder: Decoder,
    shape: tuple[int, ...],
    order: Order,
    *,
    readers: Sequence[Reader] = (),
    precomputed: Precomputed | None = None,
    reading: Reading = PLAIN,
) -> TrainBatches:
    """Endless batches of source, this process's rows of each; batch n is a function of the seed and n alone.

    A batch has "x" float32 [b, *S, C], of this shape and in the model's units, "index" int64 [b], the places of the
    examples in source, and the entries of the readers; b = batch_size / process_count. With order.buckets *S is the
    size of one of them. With precomputed it has those arrays too, and no "x" if latents are among them. A corrupt
    example is replaced by another, whose place is in "index". Raises UserError for one corrupt example more than the
    limit, for numbers that don't fit together, and for a source without a field that a reader needs.
    """
    _check_numbers(source, decoder, shape, order, reading)
    _check_cache(source, decoder, shape, readers, reading.cache)
    if precomputed is not None:
        _check_precomputed(precomputed, source, flip=order.flip, of_image=any(reader.of_image for reader in readers))
    for reader in readers:
        reader.check(source, shape[:-1])
        if "map" in reader.fields and not decoder.scales_maps:
            raise UserError("semantic maps are scaled as images are cropped; use them with data.modality='image'")
    latents = precomputed is not None and "mean" in precomputed.names
    if order.buckets is not None:
        _check_buckets(cache=reading.cache, latents=latents)
    count = order.batch_size // order.process_count
    rows = _Rows(
        decoded=Decoded(
            source,
            decoder,
            shape,
            readers,
            arrays=not latents,
            cache=reading.cache,
            corrupt_limit=reading.corrupt_limit,
        ),
        order=(
            SingleShapeOrder(order.seed, len(source), shape, blocks_of(source))
            if order.buckets is None
            else BucketOrder(order.seed, order.batch_size, shape[-1], order.buckets)
        ),
        seed=order.seed,
        flip=order.flip,
        precomputed=precomputed,
        offset=order.process_index * count,
        count=count,
    )
    rows.decoded.bytes_read.take()  # what was read so far is of no batch
    return TrainBatches(rows, order.batch_size, source, reading)


def _check_numbers(source: Source, decoder: Decoder, shape: tuple[int, ...], order: Order, reading: Reading) -> None:
    if order.batch_size < 1 or order.batch_size % order.process_count:
        raise UserError(
            f"batch_size={order.batch_size} is not a positive multiple of the {order.process_count} processes"
        )
    least = {
        "seed": (order.seed, 0),
        "threads": (reading.threads, 0),
        "workers": (reading.workers, 0),
        "corrupt_limit": (reading.corrupt_limit, 0),
        "data.shape": (min(shape), 1),
    }
    for name, (value, minimum) in least.items():
        if value < minimum:
            raise UserError(f"{name}={value} must be at least {minimum}")
    decoder.check_shape(shape)
    if order.flip and not decoder.mirrors:
        raise UserError(f"data.flip mirrors images left to right, and the data are {decoder.noun}; set data.flip=False")
    if not len(source):
        raise UserError("the data source has no examples; check its split")


def _check_cache(
    source: Source, decoder: Decoder, shape: tuple[int, ...], readers: Sequence[Reader], cache: bool
) -> None:
    an_example = math.prod(shape) * decoder.dtype.itemsize
    for sides, kind in (held for reader in readers for held in reader.held(shape[:-1]).values()):
        an_example += math.prod(sides) * np.dtype(kind).itemsize if sides else 0
    if cache and (needed := len(source) * an_example) > MAX_CACHE:
        raise UserError(f"cache=True would hold {needed:,} bytes of examples, more than {MAX_CACHE:,}; set cache=False")


def _check_buckets(*, cache: bool, latents: bool) -> None:
    if cache:
        raise UserError("a cache holds images of one size, and those in buckets have several; set data.cache=False")
    if latents:
        raise UserError(
            "precomputed latents have one size, and images in buckets have several; set data.precomputed='' or "
            "data.modality='image'"
        )


def _check_precomputed(found: Precomputed, source: Source, *, flip: bool, of_image: bool) -> None:
    if found.fingerprint != source.fingerprint:
        raise UserError(
            f"the arrays in {found.folder} are of the data {found.fingerprint!r}, but the source is "
            f"{source.fingerprint!r}; precompute them of this data"
        )
    if "mean" in found.names and flip and not found.flip:
        raise UserError(f"{found.folder} has no latents of mirror images; precompute with data.flip, or train without")
    if "mean" in found.names and of_image:
        raise UserError(f"a mask or map goes with an image, and {found.folder} has latents alone; train without it")
