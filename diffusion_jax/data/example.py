"""The interface of a data set: examples, and sources of examples."""

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from diffusion_jax.errors import UserError


class Example(TypedDict):
    """One image or sound, still encoded (PNG, JPEG, WAV, ...), or one array, with its label, caption and map.

    A source may add further fields (a number, a text, an array of one shape), which a `data.readers.Reader` reads.
    """

    image: NotRequired[bytes]
    array: NotRequired[np.ndarray]  # [*S, C], of any real type
    audio: NotRequired[bytes]  # a file of sound, encoded (WAV, FLAC, OGG)
    name: str  # the file or record, for errors
    label: NotRequired[int]  # in [0, num_classes)
    caption: NotRequired[str]
    map: NotRequired[bytes]  # an image of the same size, encoded, whose values are classes


class Source(Protocol):
    """A random-access sequence of examples, the same in every process; picklable, and safe to read from threads.

    A source of other data than images also has an attribute `modality`, the spec of its modality; see `modality_of`.
    One that reads several examples at a time has `blocks`, see `Blocks`; one that knows how much it reads for an
    example has `bytes_read`, one that reads captions without their images `read_captions`, and one that reads the first
    bytes of an image alone `read_head(index, most)`.
    """

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None if the examples have no labels."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, in the order of labels; None where they have none."""
        ...

    @property
    def fingerprint(self) -> str:
        """A text that is equal for equal data in all places; a saved position is checked against it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """The example at index in [0, len); raises UserError that names it if it can't be read."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """Consecutive examples of a source that are read together, such as the row groups of a Parquet file."""

    examples: tuple[int, ...]  # in each block
    bytes: tuple[int, ...]  # that each takes in memory
    window: int  # bytes of blocks that are shuffled together, and held in memory


class BytesRead:
    """A count of the bytes that a source has read, which any number of threads add to."""

    def __init__(self) -> None:
        self._counts: collections.deque[int] = collections.deque()

    def add(self, count: int) -> None:
        """Adds to the count."""
        self._counts.append(count)

    def take(self) -> int:
        """The bytes added since the last call."""
        total = 0
        with contextlib.suppress(IndexError):
            while True:
                total += self._counts.popleft()
        return total


def blocks_of(source: Source) -> Blocks | None:
    """The blocks of a source; None where single examples can be read."""
    return getattr(source, "blocks", None)


def bytes_read_of(source: Source) -> BytesRead | None:
    """The source's own count of the bytes that it reads; None where it has none."""
    return getattr(source, "bytes_read", None)


def captions_of(source: Source, most: int) -> Iterator[str]:
    """Yields the captions of the first `most` examples, in their order, of those that have one."""
    read = getattr(source, "read_captions", None)
    if read is not None:
        yield from itertools.islice(read(), most)
        return
    for index in range(min(len(source), most)):
        example = source[index]
        if "caption" in example:
            yield example["caption"]


def modality_of(source: Source) -> str:
    """The spec of the modality of a source, such as "array"; "image" where it has no attribute `modality`."""
    return getattr(source, "modality", "image")


def image_of(example: Example) -> bytes:
    """The encoded image of an example; raises UserError that names it where it has none."""
    if "image" not in example:
        raise UserError(f"{example['name']} has no image; set data.modality to what the data holds")
    return example["image"]


def array_of(example: Example) -> np.ndarray:
    """The array [*S, C] of an example; raises UserError that names it where it has none."""
    if "array" not in example:
        raise UserError(f"{example['name']} has no array; set data.modality to what the data holds")
    return example["array"]
