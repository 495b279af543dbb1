"""Examples of a source as arrays of one shape, before random augmentation."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from diffusion_jax.data.corrupt import CorruptError, readable
from diffusion_jax.data.example import BytesRead, Example, Source, bytes_read_of
from diffusion_jax.data.readers import Place, Reader, require
from diffusion_jax.data.storage import StorageError
from diffusion_jax.errors import UserError

Read = tuple[np.ndarray | None, tuple[dict[str, object], ...]]
"""The array of one example (None where only other fields are read), and the values of each reader."""


class Decoder(Protocol):
    """The part of `modalities.Modality`, which documents its members, that makes arrays of one shape of examples."""

    @property
    def dtype(self) -> np.dtype: ...  # noqa: D102

    @property
    def mirrors(self) -> bool: ...  # noqa: D102

    @property
    def scales_maps(self) -> bool: ...  # noqa: D102

    @property
    def noun(self) -> str: ...  # noqa: D102

    def check_shape(self, shape: tuple[int, ...]) -> None: ...  # noqa: D102

    def decode(self, example: Example, shape: tuple[int, ...]) -> np.ndarray: ...  # noqa: D102

    def fit(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray: ...  # noqa: D102

    def mirror(self, arrays: np.ndarray, where: np.ndarray) -> np.ndarray: ...  # noqa: D102

    def to_model(self, arrays: np.ndarray) -> np.ndarray: ...  # noqa: D102


class Examples(NamedTuple):
    """Decoded examples, before random augmentation."""

    indices: np.ndarray  # int64 [B]: places in the source; a corrupt example is replaced by another
    arrays: np.ndarray  # [B, *S, C] of the decoder's dtype, or [B, 0] where they are not read
    values: tuple[dict[str, np.ndarray], ...]  # of each reader, [B, ...]

    def take(self, rows: np.ndarray) -> "Examples":
        """The examples in rows."""
        values = tuple({name: a[rows] for name, a in each.items()} for each in self.values)
        return Examples(self.indices[rows], self.arrays[rows], values)

    def put(self, row: int, index: int, read: Read) -> None:
        """Writes one example into a row."""
        array, values = read
        self.indices[row] = index
        if array is not None:
            self.arrays[row] = array
        for columns, one in zip(self.values, values, strict=True):
            for name, value in one.items():
                columns[name][row] = value


class Decoded:
    """The examples of a source: arrays of shape [*S, C], unless arrays is False, and the values that readers read.

    With cache, examples that were read stay in memory, and all have this shape.
    """

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        shape: tuple[int, ...],
        readers: Sequence[Reader],
        *,
        arrays: bool = True,
        cache: bool = False,
        corrupt_limit: int = 0,
    ):
        self.decoder = decoder
        self._source, self._shape, self._arrays, self._cache = source, shape, arrays, cache
        self.readers, self._corrupt_limit = tuple(readers), corrupt_limit
        self._counts = bytes_read_of(source) is None
        self._bytes_read = BytesRead()
        self._hold()

    @property
    def bytes_read(self) -> BytesRead:
        """The count of encoded bytes: the source's own, or of the examples."""
        return bytes_read_of(self._source) or self._bytes_read

    def _hold(self) -> None:
        size = len(self._source) if self._cache else 0
        self._examples, self._held = self._room(size, self._shape), np.zeros(size, bool)

    def _room(self, size: int, shape: tuple[int, ...]) -> Examples:
        arrays = np.empty((size, *(shape if self._arrays else (0,))), self.decoder.dtype)
        values = tuple(
            {name: np.empty((size, *each), dtype) for name, (each, dtype) in reader.held(shape[:-1]).items()}
            for reader in self.readers
        )
        return Examples(np.empty(size, np.int64), arrays, values)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_examples", "_held")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._hold()

    def read(self, indices: np.ndarray, shape: tuple[int, ...] | None = None) -> Examples:
        """The examples at indices [B], brought to shape; None is the shape of the constructor, which a cache holds.

        Raises UserError that names an example without a field that a reader needs.
        """
        shape = shape or self._shape
        if not self._cache:
            examples = self._room(len(indices), shape)
            for row, index in enumerate(indices):
                examples.put(row, *self._readable(int(index), shape))
            return examples
        assert shape == self._shape
        for index in np.unique(indices[~self._held[indices]]):
            self._examples.put(index, *self._readable(int(index), shape))
            self._held[index] = True  # last, since other threads read it
        return self._examples.take(indices)

    def _readable(self, index: int, shape: tuple[int, ...]) -> tuple[int, Read]:
        return readable(index, len(self._source), self._corrupt_limit, lambda place: self.read_one(place, shape))

    def read_one(self, index: int, shape: tuple[int, ...] | None = None) -> Read:
        """The array of one example, in shape (None: that of all), and the values of each reader.

        Raises CorruptError if they cannot be read.
        """
        shape = shape or self._shape
        try:
            example = self._source[index]
        except StorageError:  # of the network or a disk; the example may be sound
            raise
        except UserError as error:
            raise CorruptError(str(error)) from error
        if self._counts:
            self._bytes_read.add(_bytes_of(example))
        for reader in self.readers:
            for field in reader.fields:
                require(example, field)
        array = original = None
        if self._arrays:
            try:
                array = self.decoder.decode(example, shape)
                original = array.shape[:-1]
                array = self.decoder.fit(array, shape)
            except UserError as error:
                raise CorruptError(str(error)) from error
        place = Place(shape[:-1], original)
        return array, tuple(reader.read(example, place) for reader in self.readers)


def _bytes_of(example: Example) -> int:
    array = example.get("array")
    encoded = (example.get("image", b""), example.get("audio", b""), example.get("map", b""))
    return sum(map(len, encoded)) + (0 if array is None else array.nbytes)
