"""Examples of a source as arrays, read, decoded and cropped, before what chance does to them."""

from typing import Any, Literal, NamedTuple

import numpy as np

from diffusion_jax.data import masks, transforms
from diffusion_jax.data.corrupt import CorruptError, readable
from diffusion_jax.data.example import Example, Source
from diffusion_jax.errors import UserError


class Examples(NamedTuple):
    """Examples as they were decoded, before what chance does to them."""

    indices: np.ndarray  # int64 [B]: what was asked for, or what took the place of a corrupt one
    images: np.ndarray  # uint8 [B, H, W, C], or [B, 0, 0, 0] where they are not asked for
    labels: np.ndarray  # int32 [B], arbitrary where the source has none
    captions: np.ndarray  # of str [B], or of None where they are not asked for
    maps: np.ndarray  # int32 [B, H, W], or [B, 0, 0] where they are not asked for

    def take(self, rows: np.ndarray) -> "Examples":
        """Those in rows."""
        return Examples(*(part[rows] for part in self))

    def put(
        self, row: int, index: int, image: np.ndarray | None, label: int, caption: str | None, map: np.ndarray | None
    ) -> None:
        """Takes one example in; what is None was not asked for."""
        self.indices[row], self.labels[row], self.captions[row] = index, label, caption
        if image is not None:
            self.images[row] = image
        if map is not None:
            self.maps[row] = map


class Decoded:
    """The examples of a source, of which "image", "caption" and "map" may be asked for; cache holds what was read."""

    def __init__(
        self,
        source: Source,
        shape: tuple[int, int, int],
        asked: frozenset[str],
        cache: bool,
        map_classes: int,
        corrupt_limit: int,
    ):
        self._source, self._shape, self._asked, self._cache = source, shape, asked, cache
        self._map_classes, self._corrupt_limit = map_classes, corrupt_limit
        self._hold()

    def _hold(self) -> None:
        size = len(self._source) if self._cache else 0
        self._examples, self._held = self._room(size), np.zeros(size, bool)

    def _room(self, size: int) -> Examples:
        height, width, _ = self._shape
        maps = np.empty((size, height, width) if "map" in self._asked else (size, 0, 0), np.int32)
        pixels = self._shape if "image" in self._asked else (0, 0, 0)
        images, labels = np.empty((size, *pixels), np.uint8), np.empty(size, np.int32)
        return Examples(np.empty(size, np.int64), images, labels, np.empty(size, object), maps)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_examples", "_held")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hold()

    def read(self, indices: np.ndarray) -> Examples:
        """The examples at indices [B]; raises UserError that names one that lacks what is asked for."""
        if not self._cache:
            examples = self._room(len(indices))
            for row, index in enumerate(indices):
                examples.put(row, *self._readable(int(index)))
            return examples
        for index in np.unique(indices[~self._held[indices]]):
            self._examples.put(index, *self._readable(int(index)))
            self._held[index] = True  # last: another thread may be looking
        return self._examples.take(indices)

    def _readable(self, index: int) -> tuple[int, np.ndarray | None, int, str | None, np.ndarray | None]:
        which, example = readable(index, len(self._source), self._corrupt_limit, self.read_one)
        return which, *example

    def read_one(self, index: int) -> tuple[np.ndarray | None, int, str | None, np.ndarray | None]:
        """The image, label, caption and map of one example; raises CorruptError if they cannot be read."""
        height, width, channels = self._shape
        try:
            example = self._source[index]
        except UserError as error:
            raise CorruptError(str(error)) from error
        name = example["name"]
        caption = require(example, "caption") if "caption" in self._asked else None
        if "image" not in self._asked:
            return None, example.get("label", 0), caption, None
        picture = require(example, "map") if "map" in self._asked else None
        try:
            image = transforms.decode(example["image"], channels=channels, name=name)
            map = None if picture is None else masks.read_map(picture, image.shape[:2], height, width, name=name)
        except UserError as error:
            raise CorruptError(str(error)) from error
        if map is not None and map.max() >= self._map_classes:
            raise UserError(
                f"the map of {name} has class {map.max()}, and the model is told of 0 to {self._map_classes - 1}"
            )
        return transforms.resize_crop(image, height, width), example.get("label", 0), caption, map


def require(example: Example, key: Literal["caption", "map"]) -> Any:
    """What an example has there; raises UserError that names it where it has nothing."""
    if key not in example:
        raise UserError(
            f"{example['name']} has no {key}, which the model is trained on; use data with a {key} for each"
        )
    return example[key]
