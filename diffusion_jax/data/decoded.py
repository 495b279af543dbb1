"""Examples of a source as arrays, read, decoded and cropped, before what chance does to them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data import transforms
from diffusion_jax.data.corrupt import CorruptError, readable
from diffusion_jax.data.example import Source
from diffusion_jax.data.readers import Place, Reader, require
from diffusion_jax.errors import UserError

Read = tuple[np.ndarray | None, tuple[dict[str, Any], ...]]
"""The image of one example (None where images are not read), and the values of each reader."""


class Examples(NamedTuple):
    """Examples as they were decoded, before what chance does to them."""

    indices: np.ndarray  # int64 [B]: what was asked for, or what took the place of a corrupt one
    images: np.ndarray  # uint8 [B, H, W, C], or [B, 0, 0, 0] where they are not read
    values: tuple[dict[str, np.ndarray], ...]  # of each reader, [B, ...]

    def take(self, rows: np.ndarray) -> "Examples":
        """Those in rows."""
        values = tuple({name: a[rows] for name, a in each.items()} for each in self.values)
        return Examples(self.indices[rows], self.images[rows], values)

    def put(self, row: int, index: int, read: Read) -> None:
        """Takes one example in."""
        image, values = read
        self.indices[row] = index
        if image is not None:
            self.images[row] = image
        for mine, one in zip(self.values, values, strict=True):
            for name, value in one.items():
                mine[name][row] = value


class Decoded:
    """The examples of a source: their images of shape H W C, None to read none, and what readers read.

    cache holds what was read.
    """

    def __init__(
        self,
        source: Source,
        shape: tuple[int, int, int],
        readers: Sequence[Reader],
        *,
        images: bool = True,
        cache: bool = False,
        corrupt_limit: int = 0,
    ):
        self._source, self._shape, self._images, self._cache = source, shape, images, cache
        self.readers, self._corrupt_limit = tuple(readers), corrupt_limit
        self._hold()

    def _hold(self) -> None:
        size = len(self._source) if self._cache else 0
        self._examples, self._held = self._room(size), np.zeros(size, bool)

    def _room(self, size: int) -> Examples:
        images = np.empty((size, *(self._shape if self._images else (0, 0, 0))), np.uint8)
        values = tuple(
            {name: np.empty((size, *shape), dtype) for name, (shape, dtype) in reader.held(self._shape[:2]).items()}
            for reader in self.readers
        )
        return Examples(np.empty(size, np.int64), images, values)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_examples", "_held")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hold()

    def read(self, indices: np.ndarray) -> Examples:
        """The examples at indices [B]; raises UserError that names one that lacks what a reader reads."""
        if not self._cache:
            examples = self._room(len(indices))
            for row, index in enumerate(indices):
                examples.put(row, *self._readable(int(index)))
            return examples
        for index in np.unique(indices[~self._held[indices]]):
            self._examples.put(index, *self._readable(int(index)))
            self._held[index] = True  # last: another thread may be looking
        return self._examples.take(indices)

    def _readable(self, index: int) -> tuple[int, Read]:
        return readable(index, len(self._source), self._corrupt_limit, self.read_one)

    def read_one(self, index: int) -> Read:
        """The image of one example, and the values of each reader; raises CorruptError if they cannot be read."""
        height, width, channels = self._shape
        try:
            example = self._source[index]
        except UserError as error:
            raise CorruptError(str(error)) from error
        for reader in self.readers:
            for field in reader.fields:
                require(example, field)
        image = None
        if self._images:
            try:
                image = transforms.decode(example["image"], channels=channels, name=example["name"])
            except UserError as error:
                raise CorruptError(str(error)) from error
        place = Place((height, width), None if image is None else (image.shape[0], image.shape[1]))
        values = tuple(reader.read(example, place) for reader in self.readers)
        return None if image is None else transforms.resize_crop(image, height, width), values
