"""What the pipeline sees of a data set."""

from typing import NotRequired, Protocol, TypedDict

import numpy as np


class Example(TypedDict):
    """One image, still encoded (PNG, JPEG, ...), or an array, with what is known of it.

    A source may add fields of its own (a number, a text, an array of one shape), which a `data.readers.Reader` reads.
    """

    image: NotRequired[bytes]
    array: NotRequired[np.ndarray]  # [*S, C], of any real type
    audio: NotRequired[bytes]  # a file of sound, encoded (WAV, FLAC, OGG)
    name: str  # the file or record, for errors
    label: NotRequired[int]  # in [0, num_classes)
    caption: NotRequired[str]
    map: NotRequired[bytes]  # an image of the same size, encoded, whose values are classes


class Source(Protocol):
    """A random-access sequence of examples, the same in every process; picklable, and safe to read from threads."""

    @property
    def num_classes(self) -> int | None:
        """How many classes the labels have; None if the examples have no labels."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """A name for each class; None where none are known."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal data, wherever it lies: what a saved position in it is checked against."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """The example at index in [0, len); raises UserError that names it if it can't be read."""
        ...
