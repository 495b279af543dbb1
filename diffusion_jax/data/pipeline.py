"""Endless training batches whose order and augmentation depend on the seed alone.

The examples form one endless stream: epoch after epoch, each in an order of its own. A position in the stream fixes the
example and its augmentation. Batch n of size B is the positions [n B, (n + 1) B), and each process takes a contiguous
share of its rows, as the devices of a global array do. So hosts, threads and workers change nothing of what is trained
on, and where a run stopped is one number.

Grain runs this in threads or processes. Its ElasticIterator deals rows out in turns (i, i + n, i + 2n, ...): the order
of the global batch, and with it the noise that each image meets, would depend on the host count. Its shuffle takes
11 us an example, five times as much as all that a cached digit needs here.
"""

import dataclasses
import functools
import math
import sys
import threading
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from diffusion_jax.data import transforms
from diffusion_jax.data.corrupt import Skipped
from diffusion_jax.data.decoded import Decoded
from diffusion_jax.data.example import Source
from diffusion_jax.data.precomputed import Precomputed
from diffusion_jax.data.readers import Reader, Rows
from diffusion_jax.errors import UserError

Batch = dict[str, np.ndarray]

MAX_CACHE = 2**32  # bytes of decoded pixels


def _key(seed: int, purpose: int) -> np.ndarray:
    """A Philox key; raw Philox output is what NumPy promises to keep, unlike the streams of its Generator."""
    return np.random.SeedSequence([seed, purpose]).generate_state(2, np.uint64)


@functools.lru_cache(maxsize=4)  # two streams, each astride two epochs
def _epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """A uniform permutation of range(size), int64 [size]."""
    raw = np.random.Philox(key=_key(seed, 0), counter=[0, epoch, 0, 0]).random_raw(size)
    return np.argsort(raw, kind="stable")


def example_indices(seed: int, size: int, first: int, count: int) -> np.ndarray:
    """The examples at positions [first, first + count) of the stream over size examples, int64 [count]."""
    positions = np.arange(first, first + count)
    epochs, within = np.divmod(positions, size)
    parts = [_epoch_order(seed, int(epoch), size)[within[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate(parts)


def coins(seed: int, first: int, count: int) -> np.ndarray:
    """A fair coin for each of the positions [first, first + count), bool [count]."""
    # Philox counts in blocks of four numbers: position k owns block k.
    raw = np.random.Philox(key=_key(seed, 1), counter=first).random_raw(4 * count)
    return raw[::4] >> np.uint64(63) == 1


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Our process's rows of the batch that starts at a position of the stream; what threads and workers run."""

    decoded: Decoded
    image_size: tuple[int, int]
    size: int  # of the source
    seed: int
    flip: bool
    precomputed: Precomputed | None
    offset: int  # of the first of our rows in the global batch
    count: int

    def indices(self, start: int) -> np.ndarray:
        """The examples of our rows, int64 [count], whether they can be read or not."""
        return example_indices(self.seed, self.size, start + self.offset, self.count)

    def __call__(self, start: int) -> Batch:
        first = start + self.offset
        index, images, values = self.decoded.read(self.indices(start))
        each = list(zip(self.decoded.readers, values, strict=True))
        where = None
        if self.flip:
            where = coins(self.seed, first, self.count)
            for reader, read in each:
                if (upright := reader.keeps_side(read)) is not None:
                    where &= ~upright
            images = transforms.mirror(images, where)
        batch = {"index": index}
        if self.precomputed:
            batch |= self.precomputed.read(index, where)
        if images.size:
            batch["image"] = transforms.to_float(images)
        rows = Rows(self.seed, first, self.count, self.image_size, where)
        for reader, read in each:
            batch |= reader.entries(read, rows)
        return batch


class TrainBatches:
    """An endless iterator of batches, prepared ahead in threads or worker processes; `train_batches` makes one."""

    def __init__(
        self,
        rows: _Rows,
        *,
        batch_size: int,
        fingerprint: str,
        threads: int,
        workers: int,
        prefetch: int,
        corrupt_limit: int = 0,
    ):
        self.skipped = Skipped(corrupt_limit, rows.size, rows.decoded.read_one)
        self._rows, self._batch_size, self._fingerprint = rows, batch_size, fingerprint
        self._threads, self._workers, self._prefetch = threads, workers, prefetch
        self._position = 0
        self._batches: Any = None  # Grain's iterator from _position on, once it is needed
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
            self._position += self._batch_size
        # Workers hand over shared memory, which would leak if a batch outlived the iterator.
        return {key: np.array(array) for key, array in batch.items()} if self._workers else batch

    def _open(self) -> Any:
        starts = grain.MapDataset.range(self._position, sys.maxsize, self._batch_size)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._prefetch)
        batches = starts.map(self._rows).to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain hands the flags to its workers
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return iter(batches)

    def get_state(self) -> dict[str, Any]:
        """The position of the next batch, JSON-able; equal in all processes."""
        return {"position": self._position, "source": self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on at a position that `get_state` gave; raises UserError if it belongs to other data."""
        if state["source"] != self._fingerprint:
            raise UserError(
                f"the saved position is one in the data {state['source']!r}, but the source is {self._fingerprint!r}; "
                "go on with the same data, or start a new run"
            )
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        """Stops the threads and workers."""
        with self._lock:
            if self._batches is not None:
                self._batches.close()
            self._batches = None


def train_batches(
    source: Source,
    *,
    image_size: tuple[int, int],
    channels: int,
    batch_size: int,
    seed: int,
    flip: bool = False,
    cache: bool = False,
    readers: Sequence[Reader] = (),
    precomputed: Precomputed | None = None,
    corrupt_limit: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 4,
    workers: int = 0,
) -> TrainBatches:
    """Batches of source for ever, this process's rows of each: batch n is a function of seed and n alone.

    A batch holds "image" float32 [b, H, W, C] in [-1, 1], "index" int64 [b], the examples' places in source, and the
    entries that readers make; b = batch_size / process_count. With flip, half of the images are mirrored, at random,
    but none that a reader keeps from it. With precomputed, a batch holds its arrays too, and no image if latents are
    among them. cache keeps decoded images in memory. threads run in each of workers processes, or in this one if
    workers is 0. Up to corrupt_limit examples of this process that cannot be read are named, and others take their
    place, which "index" tells. Raises UserError for the next one, for numbers that don't fit together, and for a source
    that lacks what a reader reads.
    """
    size = len(source)
    height, width = image_size
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch_size={batch_size} is not a positive multiple of the {process_count} processes")
    least = {
        "height": (height, 1),
        "width": (width, 1),
        "seed": (seed, 0),
        "threads": (threads, 0),
        "workers": (workers, 0),
        "corrupt_limit": (corrupt_limit, 0),
    }
    for name, (value, minimum) in least.items():
        if value < minimum:
            raise UserError(f"{name}={value} must be at least {minimum}")
    if channels not in transforms.MODES:
        raise UserError(f"channels={channels} must be 1 (gray), 3 (RGB) or 4 (RGBA)")
    if not size:
        raise UserError("the data source has no examples; check its split")
    shapes = [shape for reader in readers for shape in reader.held(image_size).values()]
    an_example = height * width * channels + sum(math.prod(s) * np.dtype(kind).itemsize for s, kind in shapes if s)
    if cache and (needed := size * an_example) > MAX_CACHE:
        raise UserError(f"cache=True would hold {needed:,} bytes of pixels, more than {MAX_CACHE:,}; set cache=False")
    if precomputed is not None:
        _check_precomputed(precomputed, source, flip=flip, of_image=any(reader.of_image for reader in readers))
    for reader in readers:
        reader.check(source, image_size)
    latents = precomputed is not None and "mean" in precomputed.names
    count = batch_size // process_count
    rows = _Rows(
        decoded=Decoded(
            source,
            (height, width, channels),
            readers,
            images=not latents,
            cache=cache,
            corrupt_limit=corrupt_limit,
        ),
        image_size=(height, width),
        size=size,
        seed=seed,
        flip=flip,
        precomputed=precomputed,
        offset=process_index * count,
        count=count,
    )
    return TrainBatches(
        rows,
        batch_size=batch_size,
        fingerprint=source.fingerprint,
        threads=threads,
        workers=workers,
        prefetch=max(threads, 2),
        corrupt_limit=corrupt_limit,
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
