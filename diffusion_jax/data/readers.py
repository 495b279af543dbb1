"""Readers: from fields of examples, beside their images, to entries of a batch.

A reader runs in threads and worker processes, so it is picklable and has no state. Its entries depend on the examples
and on the places of their rows in the stream of examples alone.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from diffusion_jax.data import masks, transforms
from diffusion_jax.data.corrupt import CorruptError
from diffusion_jax.data.example import Example, Source
from diffusion_jax.errors import UserError

Encode = Callable[[Sequence[str]], np.ndarray]
"""Captions [B] -> tokens int32 [B, N]."""

Held = dict[str, tuple[tuple[int, ...], DTypeLike]]
"""{value of one example: (shape, dtype)}; dtype object for texts."""

_SIDED = re.compile(r"\b(left|right)", re.IGNORECASE)


class Place(NamedTuple):
    """The sizes before and after an example's array is scaled."""

    size: tuple[int, ...]  # *S of the arrays of a batch: H W of images
    original: tuple[int, ...] | None  # *S of the array before it is scaled; None: arrays are not read


class Rows(NamedTuple):
    """The rows of one batch: their place in the stream of examples, and which are mirrored."""

    seed: int
    first: int  # position of the first row in the stream
    num: int  # B
    size: tuple[int, ...]  # *S of the arrays
    mirrored: np.ndarray | None  # bool [B]: flipped left to right; None: none is


class Reader:
    """Makes entries of a batch from fields of its examples; this base class reads nothing.

    size is *S of the arrays of a batch, H W of images.
    """

    fields: tuple[str, ...] = ()
    """Fields that every `Example` must have."""
    of_image: bool = False
    """Whether its entries belong to pixels of the image, so that latents cannot replace the image."""

    def check(self, source: Source, size: tuple[int, ...]) -> None:
        """Raises UserError where the source or arrays of this size do not suit; called before the first batch."""
        try:
            example = source[0]
        except UserError:  # it counts as a corrupt example in training
            return
        for field in self.fields:
            require(example, field)

    def held(self, size: tuple[int, ...]) -> Held:
        """Shapes and dtypes of the values that `read` returns for one example."""
        return {}

    def read(self, example: Example, place: Place) -> dict[str, object]:
        """The values of one example, before random augmentation; they may be cached.

        Raises CorruptError where the example cannot be read and another may replace it, UserError where the config and
        the data do not fit together.
        """
        return {}

    def keeps_side(self, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """bool [B]: examples that must not be mirrored, since their values would become false; None: all may be."""
        return None

    def entries(self, values: Mapping[str, np.ndarray], rows: Rows) -> dict[str, np.ndarray]:
        """The entries [B, ...] of a batch from values [B, ...]."""
        return {}


@dataclasses.dataclass(frozen=True)
class Field(Reader):
    """A number, or an array of one shape, in the field `name` of each example: the entry `name`, [B, *shape] of dtype.

    A mirror image has the same value.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"

    @property
    def fields(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one field."""
        return (self.name,)

    def held(self, size: tuple[int, ...]) -> Held:
        """As `Reader`."""
        return {self.name: (self.shape, np.dtype(self.dtype))}

    def read(self, example: Example, place: Place) -> dict[str, object]:
        """As `Reader`."""
        value = np.asarray(require(example, self.name))
        if value.shape != self.shape or value.dtype.kind not in "biuf":
            raise CorruptError(
                f"{example['name']} has a {self.name} of shape {value.shape} and type {value.dtype}; expected numbers "
                f"of shape {self.shape}"
            )
        return {self.name: value.astype(self.dtype)}

    def entries(self, values: Mapping[str, np.ndarray], rows: Rows) -> dict[str, np.ndarray]:
        """As `Reader`."""
        return {self.name: values[self.name]}


class Labels(Field):
    """The classes of the examples, entry "label" int32 [B]."""

    def __init__(self) -> None:
        super().__init__("label", dtype="int32")

    def check(self, source: Source, size: tuple[int, ...]) -> None:
        """As `Reader`: the source itself says whether its examples have labels."""
        if source.num_classes is None:
            raise UserError("the data has no labels, which the model is trained on; use data with a label for each")


@dataclasses.dataclass(frozen=True)
class Captions(Reader):
    """Captions as tokens, entry "tokens" int32 [B, N]; without encode, no entry.

    encode must be picklable where there are workers. An image whose caption has the word left or right is not mirrored,
    since the caption would be false for its mirror image.
    """

    encode: Encode | None = None

    fields = ("caption",)

    def held(self, size: tuple[int, ...]) -> Held:
        """As `Reader`."""
        return {"caption": ((), object)}

    def read(self, example: Example, place: Place) -> dict[str, object]:
        """As `Reader`."""
        return {"caption": require(example, "caption")}

    def keeps_side(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """As `Reader`."""
        return np.array([_SIDED.search(caption) is not None for caption in values["caption"]])

    def entries(self, values: Mapping[str, np.ndarray], rows: Rows) -> dict[str, np.ndarray]:
        """As `Reader`."""
        return {"tokens": np.asarray(self.encode(values["caption"].tolist()), np.int32)} if self.encode else {}


@dataclasses.dataclass(frozen=True)
class Maps(Reader):
    """Semantic maps, entry "map" int32 [B, H, W] with values below `classes`, cropped and mirrored with the image."""

    classes: int

    fields = ("map",)
    of_image = True

    def check(self, source: Source, size: tuple[int, ...]) -> None:
        """As `Reader`; maps are of images."""
        if len(size) != 2:
            raise UserError(f"a semantic map is of images (height, width, channels); data.shape has {len(size)} sides")
        super().check(source, size)

    def held(self, size: tuple[int, ...]) -> Held:
        """As `Reader`."""
        return {"map": (size, np.dtype(np.int32))}

    def read(self, example: Example, place: Place) -> dict[str, object]:
        """As `Reader`."""
        require(example, "map")
        name = example["name"]
        assert place.original is not None  # `of_image` excludes it
        try:
            found = masks.read_map(example["map"], place.original, place.size, name=name)
        except UserError as error:
            raise CorruptError(str(error)) from error
        if found.max() >= self.classes:
            raise UserError(
                f"the map of {name} has class {found.max()}, and the model is told of 0 to {self.classes - 1}"
            )
        return {"map": found}

    def entries(self, values: Mapping[str, np.ndarray], rows: Rows) -> dict[str, np.ndarray]:
        """As `Reader`."""
        return {"map": values["map"] if rows.mirrored is None else transforms.mirror(values["map"], rows.mirrored)}


@dataclasses.dataclass(frozen=True)
class SizesAndCrops(Reader):
    """The entry `name` float32 [B, 6], in pixels: height and width of an image before it is scaled, top and left of
    the crop in the scaled image, height and width of the crop. Of a mirror image these are the same, as the crop is
    central (`transforms.resize_crop`).
    """

    name: str

    of_image = True

    def held(self, size: tuple[int, ...]) -> Held:
        """As `Reader`."""
        return {self.name: ((6,), np.dtype(np.float32))}

    def read(self, example: Example, place: Place) -> dict[str, object]:
        """As `Reader`."""
        assert place.original is not None  # `of_image` excludes it
        scale = max(new / old for new, old in zip(place.size, place.original, strict=True))
        cut = [max(round(old * scale) - new, 0) // 2 for new, old in zip(place.size, place.original, strict=True)]
        return {self.name: np.asarray((*place.original, *cut, *place.size), np.float32)}

    def entries(self, values: Mapping[str, np.ndarray], rows: Rows) -> dict[str, np.ndarray]:
        """As `Reader`."""
        return {self.name: values[self.name]}


@dataclasses.dataclass(frozen=True)
class Masks(Reader):
    """Random masks for inpainting, entry "mask" bool [B, *S], drawn by `masks.random_masks`."""

    of_image = True

    def check(self, source: Source, size: tuple[int, ...]) -> None:
        """As `Reader`."""
        masks.random_masks(0, 0, 1, size)  # raises where arrays have no part to hide

    def entries(self, values: Mapping[str, np.ndarray], rows: Rows) -> dict[str, np.ndarray]:
        """As `Reader`."""
        return {"mask": masks.random_masks(rows.seed, rows.first, rows.num, rows.size)}


def require(example: Example, field: str) -> object:
    """The value of a field of an example; raises UserError that names the example where it lacks the field."""
    if field not in example:
        raise UserError(
            f"{example['name']} has no {field}, which the model is trained on; use data with a {field} for each"
        )
    return example[field]  # type: ignore[literal-required]
